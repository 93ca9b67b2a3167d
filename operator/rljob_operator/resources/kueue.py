"""Admission by Kueue: the labels by which it manages an attempt's RayJob."""

from rljob_api.v1alpha1.lifecycle import QueueSpec

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def labels(queue: QueueSpec) -> dict[str, str]:
    """Labels of a RayJob that waits in the LocalQueue."""
    return {QUEUE: queue.name} | ({PRIORITY: queue.priority_class} if queue.priority_class else {})
