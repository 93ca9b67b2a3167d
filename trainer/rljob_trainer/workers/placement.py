"""Ray: start or join it, and put ranks and engines where their custom resources are.

Trainer pods offer `rljob_trainer`, rollout pods `rljob_rollout`; on a laptop one local node offers both. So the two
groups never share a pod on a cluster, and nothing else depends on the place.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import ray
from rljob_api.rules.arithmetic import shares_gpus
from rljob_api.v1alpha1.job import RLJobSpec

TRAINER_RESOURCE = "rljob_trainer"
ROLLOUT_RESOURCE = "rljob_rollout"
OBJECT_STORE_BYTES = 256 * 1024**2
START_TRIES = 4
logger = logging.getLogger(__name__)


class PlacementError(RuntimeError):
    """The resources that the job needs are not there in time."""


COLOCATED_SHARE = 0.5
"""Share of a GPU that Ray books for a rank and for an engine which take turns on it."""


def rank_gpu_share(spec: RLJobSpec) -> float:
    """What Ray books of a GPU for a training rank."""
    if spec.trainer.gpus_per_replica == 0:
        return 0.0
    return COLOCATED_SHARE if shares_gpus(spec) else 1.0


def engine_gpu_share(spec: RLJobSpec) -> float:
    """What Ray books of GPUs for an engine."""
    if shares_gpus(spec) and spec.trainer.gpus_per_replica:
        return COLOCATED_SHARE
    return float(spec.rollout.gpus_per_engine)


def start_local_ray(ranks: int, engines: int, gpus: int = 0) -> None:
    """Start a Ray of this process's own that offers the resources of `ranks` and `engines`, and `gpus`.

    It is quiet (no dashboard, no usage reports) and small (the object store holds two copies of small weights).
    Raises PlacementError when it does not come up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Ray runs workers at niceness 15, below everything else on the machine; ranks and engines are the work here.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for _ in range(START_TRIES):
        try:
            ray.init(
                num_cpus=ranks + engines,
                num_gpus=gpus,
                resources={TRAINER_RESOURCE: ranks, ROLLOUT_RESOURCE: engines},
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            # Ray allows its node 30 s, has no setting for it, and raises a bare Exception. A busy machine needs more.
            if "timed out during startup" not in str(error):
                raise
            logger.warning("Ray's processes did not come up within 30 s; starting them again")
            ray.shutdown()
        else:
            return
    raise PlacementError(f"Ray did not start, {START_TRIES} times in a row: the machine is too busy or out of memory")


def join_ray() -> None:
    """Join the cluster's Ray, on whose head this driver runs."""
    # Ranks and engines write into the logs of their own pods.
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)


def wait_for_resources(needed: dict[str, float], limit: float, tick: Callable[[], None], poll: float = 1.0) -> None:
    """Wait until the cluster offers `needed`. Raises PlacementError naming what is missing after `limit` seconds."""
    deadline = time.monotonic() + limit
    told = 0.0
    while True:
        offered = ray.cluster_resources()
        missing = {name: count for name, count in needed.items() if offered.get(name, 0.0) < count}
        if not missing:
            return
        text = ", ".join(f"{name}: {offered.get(name, 0.0):g} of {count:g}" for name, count in missing.items())
        if time.monotonic() > deadline:
            raise PlacementError(f"waited {limit:.0f} s for Ray resources, still missing {text}")
        if time.monotonic() - told > 30.0:
            told = time.monotonic()
            logger.info("waiting for Ray resources: %s", text)
        tick()
        time.sleep(poll)


def make_actor(
    cls: type,
    resource: str,
    *args: Any,
    name: str,
    gpus: float = 0,
    concurrency: int | None = None,
    where: Any = None,
) -> Any:
    """An actor of `cls` on one unit of `resource`. Ray does not restart it: the loop decides what a loss means.

    `concurrency`: calls at once, for an actor with async methods; without it calls run one by one, in order. `where`:
    Ray's scheduling strategy, when not any place with the resources will do.
    """
    options: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": gpus,
        "resources": {resource: 1},
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    if gpus:
        # NCCL's own memory mapping fails between processes that see one GPU each; a value of the user's own stays.
        options["runtime_env"] = {"env_vars": {"NCCL_CUMEM_ENABLE": os.environ.get("NCCL_CUMEM_ENABLE", "0")}}
    if concurrency is not None:
        options["max_concurrency"] = concurrency
    if where is not None:
        options["scheduling_strategy"] = where
    logger.info("placing %s on %s", name, resource)
    return ray.remote(cls).options(**options).remote(*args)
