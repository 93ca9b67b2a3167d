"""Dynamic sampling: which groups make up a rollout, and the filter that drops those that teach nothing.

No clock, no engine: what is chosen follows from what is put in, and in which order.

A rollout holds at most `at_once` groups (`rollout.overSamplingBatchSize`, by default `rollout.batchSize`): good ones
and those under way. It ends when `batch_size` of them are good. Dynamic sampling is that of DAPO (Yu et al. 2025,
arXiv:2503.14476, section 3.2): a group that the filter drops is replaced by another prompt's.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rljob.types import Sample
from rljob_api.v1alpha1.rollout import RolloutSpec

from rljob_trainer.hooks import load_hook

Filter = Callable[[Sequence[Sample]], bool]
FILTER_FIELD = "spec.rollout.dynamicFilter"
TOO_LITTLE = (
    f"{FILTER_FIELD} finds too little in spec.data.train for this model: use easier or harder prompts, more samples "
    "per prompt, or raise spec.rollout.maxPromptsPerRollout"
)
DRAWS = 16
"""Without a limit of the user's, so many times `overSamplingBatchSize` prompts are drawn for a rollout at most."""
UNFINISHED = ("pending", "aborted")


@dataclass(eq=False)
class Group:
    """The samples of one prompt, by their index."""

    samples: list[Sample]
    carried_over: bool = False
    """Whether an earlier rollout began or finished it."""

    @property
    def finished(self) -> bool:
        """Whether every sample has come to an end, good or bad."""
        return all(sample.status not in UNFINISHED for sample in self.samples)


class Dropped:
    """Groups that the filter dropped, by their mean reward: all wrong, or all right?"""

    def __init__(self) -> None:
        self._groups: Counter[float] = Counter()

    def add(self, samples: Sequence[Sample]) -> None:
        """The samples of one group."""
        rewards = [sample.reward or 0.0 for sample in samples]
        self._groups[round(sum(rewards) / max(len(rewards), 1), 6)] += 1

    @property
    def count(self) -> int:
        """Number of groups."""
        return self._groups.total()

    def metrics(self) -> dict[str, float]:
        """How many, and the mean of their rewards."""
        values = {"sampling/groups_dropped": float(self.count)}
        if self.count:
            values["sampling/dropped_reward"] = sum(reward * n for reward, n in self._groups.items()) / self.count
        return values

    def __str__(self) -> str:
        most = ", ".join(f"{count} with mean reward {reward:g}" for reward, count in self._groups.most_common(3))
        return f"{self.count} groups were dropped ({most})"


@dataclass
class Selection:
    """The groups of one rollout. `good` and `under_way` start with what the rollout before left."""

    batch_size: int
    at_once: int
    draw_limit: int
    """Prompts that may be drawn for one rollout."""
    good: list[Group] = field(default_factory=list)
    """Finished groups that the filter kept, oldest first."""
    under_way: list[Group] = field(default_factory=list)
    drawn: int = 0
    dropped: Dropped = field(default_factory=Dropped)

    @property
    def full(self) -> bool:
        """Whether there are enough good groups."""
        return len(self.good) >= self.batch_size

    @property
    def wanted(self) -> int:
        """Prompts to draw now: none while those under way could still fill the batch, else up to `at_once`."""
        held = len(self.good) + len(self.under_way)
        return 0 if held >= self.batch_size else min(self.at_once - held, self.draw_limit - self.drawn)

    @property
    def exhausted(self) -> bool:
        """Whether the batch cannot become full any more."""
        held = len(self.good) + len(self.under_way)
        return held < self.batch_size and self.drawn >= self.draw_limit

    def draw(self, groups: Sequence[Group]) -> None:
        """`groups` of new prompts are under way."""
        self.under_way += groups
        self.drawn += len(groups)

    def finish(self, group: Group, *, keep: bool) -> None:
        """A group has come to its end."""
        self.under_way.remove(group)
        if keep:
            self.good.append(group)
        else:
            self.dropped.add(group.samples)

    def take(self) -> tuple[list[Group], list[Group]]:
        """The batch, and what is left for the next rollout: good groups first, then those under way."""
        return self.good[: self.batch_size], [*self.good[self.batch_size :], *self.under_way]

    def shortage(self) -> str:
        """Why the batch is not full, for people."""
        return (
            f"{self.drawn} prompts were drawn and {len(self.good)} of the {self.batch_size} groups needed passed "
            f"the filter; {self.dropped}"
        )


def nonzero_std(samples: Sequence[Sample]) -> bool:
    """DAPO's filter: whether the rewards of a group differ, so that its advantages are not all zero.

    Samples that cannot be trained on do not count.
    """
    rewards = {
        sample.reward
        for sample in samples
        if sample.status in ("completed", "truncated") and sample.reward is not None and any(sample.loss_mask)
    }
    return len(rewards) > 1


def make_filter(spec: RolloutSpec) -> Filter | None:
    """The filter of `rollout.dynamicFilter`. Raises UserError for a function that is not there, cannot be called with
    a group, raises or returns nothing."""
    if spec.dynamic_filter is None:
        return None
    if spec.dynamic_filter == "nonzero_std":
        return nonzero_std
    hook = load_hook(spec.dynamic_filter, FILTER_FIELD, {}, "def keep(samples) -> bool", 1)

    def custom(samples: Sequence[Sample]) -> bool:
        keep = hook.call(samples)
        if keep is None:
            raise hook.wrong("returned None, neither true nor false")
        return bool(keep)

    return custom
