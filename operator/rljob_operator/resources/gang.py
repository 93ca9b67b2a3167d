"""Gang scheduling: the labels by which KubeRay hands an attempt's pods to a batch scheduler.

KubeRay copies a RayJob's labels to its cluster and pods and makes the PodGroup or task groups itself, if it is
installed with that scheduler.
"""

from rljob_api.v1alpha1.lifecycle import GangSpec

ENABLED = "ray.io/gang-scheduling-enabled"
VOLCANO_QUEUE = "volcano.sh/queue-name"
VOLCANO_PRIORITY = "ray.io/priority-class-name"
YUNIKORN_APP, YUNIKORN_QUEUE = "yunikorn.apache.org/app-id", "yunikorn.apache.org/queue"
KAI_QUEUE = "kai.scheduler/queue"


def labels(gang: GangSpec | None, ray_job: str, priority_class: str | None) -> dict[str, str]:
    """Labels of the RayJob `ray_job`. `priority_class`: of its pods, for schedulers that order whole gangs by it."""
    if gang is None:
        return {}
    queue = gang.queue
    match gang.scheduler:
        case "volcano":
            return ({VOLCANO_QUEUE: queue} if queue else {}) | (
                {VOLCANO_PRIORITY: priority_class} if priority_class else {}
            )
        case "yunikorn":
            return {ENABLED: "true", YUNIKORN_APP: ray_job} | ({YUNIKORN_QUEUE: queue} if queue else {})
        case "scheduler-plugins":
            return {ENABLED: "true"}
        case "kai-scheduler":
            return {KAI_QUEUE: queue} if queue else {}
