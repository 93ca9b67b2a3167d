"""The loop of every generate function of several turns: a turn of the model, an observation, the next turn."""

from collections.abc import Awaitable, Callable, Sequence

from rljob.types import Engine, Generation, Sample, SamplingParams

from rljob_trainer.rollout.generate.base import Limits
from rljob_trainer.rollout.generate.chat_turns import Bridge

Observe = Callable[[Generation, bool], Awaitable[Bridge | None]]
"""`observe(turn, last)`: what the model is shown after a turn that it ended by itself; None completes the sample, as
nothing can follow the `last` turn. Raises ObservationError."""


class ObservationError(Exception):
    """A service does not answer, and the model could not mend that: the sample fails, and only this one."""


async def generate_turns(
    sample: Sample,
    sampling: SamplingParams,
    engine: Engine,
    *,
    limits: Limits,
    max_turns: int,
    observe: Observe,
    stop: Sequence[str] = (),
    stop_ids: Sequence[int] = (),
) -> int:
    """Fill in the response of `sample` and its status. Returns the turns: one for each generation.

    Token ids go in and out: what the model drew is trained on (mask 1), observations are appended with mask 0, and
    nothing is tokenised again. A turn ends at `stop` and `stop_ids` too. One that its limit has cut off, and an
    observation that leaves no room for a next turn, truncate the sample; an ObservationError fails it, with the reason
    in `info["error"]`. Raises EngineError.
    """
    turns = 0
    async with engine.open(sample.seed) as session:
        new_ids: Sequence[int] = sample.prompt_ids
        while True:
            room = limits.room(sample, sampling, engine)
            if room < 1:
                sample.status = "truncated"
                return turns
            generation = await session.generate(new_ids, limits.turn(room, sampling, stop, stop_ids))
            sample.append_generation(generation)
            turns += 1
            if generation.finish_reason != "stop":
                sample.status = "truncated"
                return turns
            try:
                observation = await observe(generation, turns == max_turns)
            except ObservationError as error:
                sample.info["error"] = str(error)
                sample.status = "failed"
                return turns
            if observation is None:
                sample.status = "completed"
                return turns
            new_ids = observation.token_ids
            if len(new_ids) >= limits.room(sample, sampling, engine):
                sample.status = "truncated"
                return turns
            sample.append_observation(new_ids, observation.text)
