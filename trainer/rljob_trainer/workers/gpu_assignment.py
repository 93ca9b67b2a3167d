"""One GPU a rank, ranks of one node as neighbours, and colocated engines on the GPU of their rank.

Ray books GPUs by number alone: two ranks with half a GPU each would end up on the same one, and ranks that exchange
most (the tensor coordinate is the fastest) could be nodes apart. A placement group with a bundle for each GPU settles
both. An actor has one bundle: an engine over several of the trainer's GPUs is at the first, and told the others.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.util.placement_group import placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rljob_api.rules.arithmetic import engine_gpus, shares_gpus, trainer_gpus, world_size
from rljob_api.v1alpha1.job import RLJobSpec

from rljob_trainer.workers.placement import ROLLOUT_RESOURCE, TRAINER_RESOURCE, PlacementError

BUNDLE_SECONDS = 600.0


def neighbours(nodes: Sequence[str]) -> list[int]:
    """Numbers of bundles, given the node of each: those of one node side by side, nodes by their first bundle."""
    first: dict[str, int] = {}
    for number, node in enumerate(nodes):
        first.setdefault(node, number)
    return sorted(range(len(nodes)), key=lambda number: (first[nodes[number]], number))


class TrainerGpus:
    """The trainer's GPUs, booked in one piece until the driver ends. One rank alone needs no such booking."""

    def __init__(self, spec: RLJobSpec, tick: Callable[[], None]) -> None:
        """Raises PlacementError when the GPUs are not there within ten minutes. `tick` runs while they are waited
        for."""
        self._group: Any = None
        self._engine_gpus = engine_gpus(spec) if shares_gpus(spec) else 0
        self.devices: Sequence[str] = ()
        """Each rank's GPU as CUDA_VISIBLE_DEVICES names it, once the ranks are up."""
        ranks = world_size(spec)
        if trainer_gpus(spec) == 0 or ranks == 1:
            return
        bundle: dict[str, float] = {"GPU": 1.0, TRAINER_RESOURCE: 1.0}
        if shares_gpus(spec):
            bundle[ROLLOUT_RESOURCE] = 1.0
        self._group = placement_group([dict(bundle) for _ in range(ranks)], strategy="PACK")
        deadline = time.monotonic() + BUNDLE_SECONDS
        while not self._group.wait(1.0):
            tick()
            if time.monotonic() > deadline:
                raise PlacementError(f"waited {BUNDLE_SECONDS:.0f} s for {ranks} GPUs of the trainer")
        on = placement_group_table(self._group)["bundles_to_node_id"]
        self._order = neighbours([on[number] for number in range(ranks)])

    def of_engine(self, index: int) -> Any:
        """The strategy for an engine on the trainer's GPUs: where its first one is. None for other engines."""
        return self.of(index * self._engine_gpus) if self._engine_gpus else None

    def devices_of(self, index: int) -> str | None:
        """CUDA_VISIBLE_DEVICES of an engine on several of the trainer's GPUs; None: what Ray has it see."""
        size = self._engine_gpus
        return ",".join(self.devices[index * size : (index + 1) * size]) if size > 1 else None

    def of(self, rank: int) -> Any:
        """Ray's scheduling strategy for what runs on the GPU of `rank`; None: wherever there is room."""
        if self._group is None:
            return None
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=self._order[rank])
