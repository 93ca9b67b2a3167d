"""Built-in rewards: the values of `spec.reward.functions[].name`, beside `remote` and `custom`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Reward:
    """One built-in reward."""

    name: str
    function: str
    """`module:function`. In the driver: `f(args: Arguments) -> scorer`, which takes the reward's arguments and checks
    them; the scorer makes a number of a sample. In a worker: `f(sample) -> number`, without arguments, which reads
    prompt, response, label and metadata alone."""
    runs: Literal["driver", "worker"] = "driver"
    """`driver`: its time is linear in the response. `worker`: it computes with what the model wrote, so a process that
    may be killed runs it, within limits of time and memory, and a few samples on which it fails prove nothing."""
    label: Literal["none", "text", "answers"] = "none"
    """The label that it reads: none; a text or a number; or one golden answer or several. One that it cannot read is a
    mistake in the data, found before anything starts."""
    tells_right: bool = False
    """1 is right and less is not: it makes the metric `em`."""


_LIBRARY = "rljob_trainer.rewards"
REWARDS: dict[str, Reward] = {
    entry.name: entry
    for entry in (
        Reward("em", f"{_LIBRARY}.em:exact_match", label="answers", tells_right=True),
        Reward("math", f"{_LIBRARY}.verifiers:math", runs="worker", label="text", tells_right=True),
        Reward("deepscaler", f"{_LIBRARY}.verifiers:deepscaler", runs="worker", label="text", tells_right=True),
        Reward("dapo", f"{_LIBRARY}.dapo:integer_answer", label="text", tells_right=True),
        Reward("format", f"{_LIBRARY}.tags:response_format"),
        Reward("tag_count", f"{_LIBRARY}.tags:counted_tags"),
        Reward("length", f"{_LIBRARY}.dapo:overlong_penalty"),
    )
}
VERIFIERS = frozenset(entry.name for entry in REWARDS.values() if entry.runs == "worker")
"""Those that run in a worker."""
