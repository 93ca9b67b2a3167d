"""What generate functions share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rljob.types import Engine, Sample, SamplingParams


class GenerateFunction(Protocol):
    """Fills in the response of one sample. Raises EngineError when the engine is lost, and nothing else that a tool
    or the model could cause: that is the sample's `status` and `info`."""

    async def __call__(self, sample: Sample, sampling: SamplingParams, engine: Engine) -> Sample: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a response may become: `sampling.max_new_tokens` counts the whole of it, observations included."""

    per_turn: int | None = None
    """Tokens of one generation."""

    def room(self, sample: Sample, sampling: SamplingParams, engine: Engine) -> int:
        """Tokens that the response may still grow by."""
        used = len(sample.response_ids)
        return min(sampling.max_new_tokens - used, engine.max_context_length - len(sample.prompt_ids) - used)

    def turn(
        self, room: int, sampling: SamplingParams, stop: Sequence[str] = (), stop_ids: Sequence[int] = ()
    ) -> SamplingParams:
        """Sampling of the next turn: within `room`, ending at `stop` and `stop_ids` too."""
        return replace(
            sampling,
            max_new_tokens=room if self.per_turn is None else min(room, self.per_turn),
            stop=tuple(dict.fromkeys((*stop, *sampling.stop))),
            stop_ids=tuple(dict.fromkeys((*stop_ids, *sampling.stop_ids))),
        )
