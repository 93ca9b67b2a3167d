"""One generation per sample."""

from rljob.types import Engine, Sample, SamplingParams

from rljob_trainer.rollout.generate.base import Limits


class SingleTurnGenerate:
    """The prompt, then one generation to its end or its limit."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def __call__(self, sample: Sample, sampling: SamplingParams, engine: Engine) -> Sample:
        room = self._limits.room(sample, sampling, engine)
        sample.info |= {"turns": 0.0}
        if room < 1:
            sample.status = "truncated"
            return sample
        async with engine.open(sample.seed) as session:
            generation = await session.generate(sample.prompt_ids, self._limits.turn(room, sampling))
        sample.append_generation(generation)
        sample.info |= {"turns": 1.0}
        sample.status = "completed" if generation.finish_reason == "stop" else "truncated"
        return sample
