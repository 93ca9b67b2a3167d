"""Multi-turn generation with tools that are declared by JSON schema."""

import asyncio

from rljob.types import Engine, Generation, Sample, SamplingParams

from rljob_trainer.rollout.generate.base import Limits
from rljob_trainer.rollout.generate.chat_turns import Bridge
from rljob_trainer.rollout.generate.escaping import escaped
from rljob_trainer.rollout.generate.multi_turn import ObservationError, generate_turns
from rljob_trainer.rollout.generate.tool_calls import parse_calls
from rljob_trainer.rollout.generate.tool_template import ToolAnswers
from rljob_trainer.rollout.generate.toolbox import ToolAwayError, Toolbox, ToolError

TAGS = ("tool_call", "tool_response")
CUT = "… (cut)"
MAX_CALLS_PER_TURN = 16


class ToolsGenerate:
    """Turns that may call tools. A turn ends as the model ends it, with its end-of-sequence token or with the special
    token by which its chat template closes turns.

    - All calls of a turn are made at once and answered in their order, as one observation that is not trained on,
      in the form of the model's chat template.
    - What the model did wrong (no JSON, an unknown tool, arguments against the schema) and what a tool says against
      it is the answer, `Error: …`, and the next turn follows.
    - A turn without calls completes the sample. Each generation is a turn; calls in the last one are not made.
    - A turn cut off by its token limit, and an observation for which there is no room, truncate the sample.
    - A tool that does not answer fails this sample, and only this one; the reason is in `info["error"]`.
    """

    def __init__(self, limits: Limits, max_turns: int, max_result: int, toolbox: Toolbox, answers: ToolAnswers) -> None:
        self._limits, self._max_turns, self._max_result = limits, max_turns, max_result
        self._toolbox, self._answers = toolbox, answers

    async def __call__(self, sample: Sample, sampling: SamplingParams, engine: Engine) -> Sample:
        counts = {"tool_calls": 0.0, "tool_errors": 0.0, "tool_failures": 0.0}

        async def observe(turn: Generation, last: bool) -> Bridge | None:
            calls = parse_calls(turn.text)
            if not calls or last:
                return None
            counts["tool_calls"] += len(calls)
            asked = [self._toolbox.call(call, sample) for call in calls[:MAX_CALLS_PER_TURN]]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            if away := [answer for answer in answers if isinstance(answer, ToolAwayError)]:
                counts["tool_failures"] += len(away)
                raise ObservationError(str(away[0]))
            results: list[str] = []
            for answer in answers:
                if isinstance(answer, ToolError):
                    counts["tool_errors"] += 1
                    results.append(self._shown(f"Error: {answer}", engine))
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    results.append(self._shown(answer, engine))
            if len(calls) > MAX_CALLS_PER_TURN:
                results.append(f"Error: only {MAX_CALLS_PER_TURN} calls are made in one turn.")
            names = [escaped(call.name[:64], TAGS, engine.tokenizer) for call in calls[: len(results)]]
            return self._answers.follow(turn, results, names)

        turns = await generate_turns(
            sample,
            sampling,
            engine,
            limits=self._limits,
            max_turns=self._max_turns,
            observe=observe,
            stop_ids=self._answers.end_ids,
        )
        sample.info |= {"turns": float(turns), **counts}
        return sample

    def _shown(self, result: str, engine: Engine) -> str:
        cut = result if len(result) <= self._max_result else result[: self._max_result] + CUT
        return escaped(cut, TAGS, engine.tokenizer)
