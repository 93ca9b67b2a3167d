"""Where ranks and engines go when there are several GPUs: Ray books numbers that stand for GPUs, none is needed."""

import os
from collections.abc import Iterator

import pytest
import ray
from rljob_api.v1alpha1.job import RLJobSpec
from rljob_trainer.workers.gpu_assignment import TrainerGpus, neighbours
from rljob_trainer.workers.placement import (
    ROLLOUT_RESOURCE,
    TRAINER_RESOURCE,
    engine_gpu_share,
    make_actor,
    rank_gpu_share,
    start_local_ray,
)


def spec(placement: str, **rollout: int) -> RLJobSpec:
    return RLJobSpec.model_validate(
        {
            "model": {"path": "model"},
            "data": {"train": {"path": "prompts.jsonl"}},
            "reward": {"functions": [{"name": "em"}]},
            "rollout": {"engine": "sglang", "replicas": 2, "gpusPerEngine": 1, **rollout},
            "trainer": {"gpusPerReplica": 2},
            "placement": {"type": placement},
        }
    )


def test_bundles_of_a_node_are_neighbours() -> None:
    assert neighbours(["b", "a", "b", "a"]) == [0, 2, 1, 3]
    assert neighbours(["a"]) == [0]


def test_ranks_and_engines_share_a_gpu_only_where_they_take_turns() -> None:
    assert (rank_gpu_share(spec("colocated")), engine_gpu_share(spec("colocated"))) == (0.5, 0.5)
    assert (rank_gpu_share(spec("disaggregated")), engine_gpu_share(spec("async", gpusPerEngine=2))) == (1.0, 2.0)


class Device:
    """Tells which GPUs its process sees."""

    def seen(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture
def four_gpus() -> Iterator[None]:
    start_local_ray(2, 2, 4)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("four_gpus")
def test_a_colocated_engine_is_on_the_gpu_of_its_rank_and_so_is_its_replacement() -> None:
    job = spec("colocated")
    gpus = TrainerGpus(job, lambda: None)

    def make(resource: str, index: int) -> tuple[object, str]:
        share = rank_gpu_share(job) if resource == TRAINER_RESOURCE else engine_gpu_share(job)
        actor = make_actor(Device, resource, name=f"{resource} {index}", gpus=share, where=gpus.of(index))
        return actor, ray.get(actor.seen.remote(), timeout=60)

    ranks = [make(TRAINER_RESOURCE, index) for index in range(2)]
    engines = [make(ROLLOUT_RESOURCE, index) for index in range(2)]
    assert len({seen for _, seen in ranks}) == 2
    assert [seen for _, seen in engines] == [seen for _, seen in ranks]
    ray.kill(engines[1][0])
    assert make(ROLLOUT_RESOURCE, 1)[1] == ranks[1][1]


@pytest.mark.ray
@pytest.mark.usefixtures("four_gpus")
def test_a_colocated_engine_over_two_gpus_is_at_the_first_ranks_and_is_told_both() -> None:
    job = spec("colocated", replicas=1, gpusPerEngine=2)
    gpus = TrainerGpus(job, lambda: None)
    share = rank_gpu_share(job)
    ranks = [make_actor(Device, TRAINER_RESOURCE, name="", gpus=share, where=gpus.of(rank)) for rank in range(2)]
    gpus.devices = ray.get([rank.seen.remote() for rank in ranks], timeout=60)
    engine = make_actor(Device, ROLLOUT_RESOURCE, name="", gpus=engine_gpu_share(job), where=gpus.of_engine(0))
    assert ray.get(engine.seen.remote(), timeout=60) == gpus.devices[0]
    assert gpus.devices_of(0) == ",".join(gpus.devices)
