"""Names of the children of an RLJob.

An RLJob's name has at most 40 characters, so that `<job>-<attempt>` fits a RayJob (47), KubeRay's RayCluster
`<rayjob>-xxxxx` fits 53, and `<raycluster>-head-svc` a DNS label (63).
"""

from rljob_api.v1alpha1.job import MAX_NAME_LENGTH

MAX_RAY_JOB = 47
MAX_ATTEMPT = 10 ** (MAX_RAY_JOB - MAX_NAME_LENGTH - 1) - 1
"""Attempts that fit in the name of a RayJob."""


def ray_job(job: str, attempt: int) -> str:
    """Name of an attempt's RayJob."""
    if not 1 <= attempt <= MAX_ATTEMPT:
        raise ValueError(f"attempt {attempt} does not fit in the name of a RayJob")
    return f"{job}-{attempt}"


def job_of(ray_job: str) -> str:
    """The job that a RayJob of this name would be of."""
    return ray_job.rpartition("-")[0]


def config(job: str) -> str:
    """ConfigMap with the manifest for the trainer."""
    return f"{job}-config"


def code(job: str) -> str:
    """ConfigMap with the files of `spec.code.files`."""
    return f"{job}-code"


def progress(job: str) -> str:
    """ConfigMap that the driver reports into."""
    return f"{job}-progress"


def control(job: str) -> str:
    """ConfigMap with the operator's requests to the driver."""
    return f"{job}-control"


def driver(job: str) -> str:
    """Lease of the driver, and the ServiceAccount, Role and RoleBinding that it acts with."""
    return f"{job}-driver"


def claim(job: str) -> str:
    """PersistentVolumeClaim that is made when the job names none."""
    return f"{job}-data"


def retriever(job: str) -> str:
    """Deployment and Service of the retriever, and what scales and guards its pods."""
    return f"{job}-retriever"


def retriever_claim(job: str) -> str:
    """PersistentVolumeClaim of the retriever's own that is made when `retriever.storage` names none."""
    return f"{job}-retriever"


def prepare(job: str, key: str) -> str:
    """Job that fills the claim; `key` is of its content (8 characters)."""
    return f"{job}-prepare-{key}"


def pods(job: str) -> str:
    """NetworkPolicy of all pods but the retriever's."""
    return f"{job}-pods"
