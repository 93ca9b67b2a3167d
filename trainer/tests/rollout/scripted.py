"""An engine whose model draws what a test says. It keeps the contract of engines, and checks that it does."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from rljob.types import FinishReason, Generation, Sample, SamplingParams, shown_ids
from rljob_trainer.quickstart.byte_tokenizer import write_byte_tokenizer

from trainer.tests.inference.contract import check_generation, end_of

LOGPROB, VERSION = -0.5, 4


@cache
def byte_tokenizer() -> Any:
    """A token per byte; ChatML's special tokens, of which `<|im_end|>` ends a sequence."""
    from transformers import PreTrainedTokenizerFast

    with TemporaryDirectory() as folder:
        write_byte_tokenizer(Path(folder))
        return PreTrainedTokenizerFast.from_pretrained(folder)


class ScriptedEngine:
    """Its model draws `turns`, one after the other: ids, or text that it ends by its end-of-sequence token unless
    something else ends it before."""

    def __init__(
        self,
        turns: Sequence[str | Sequence[int]],
        tokenizer: Any = None,
        context: int = 100_000,
        eos_ids: Sequence[int] | None = None,
    ) -> None:
        self.tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
        self.max_context_length = context
        self.eos_ids = (self.tokenizer.eos_token_id,) if eos_ids is None else tuple(eos_ids)
        self.turns = list(turns)
        self.heard: list[str] = []
        """What each generation was given, as text."""
        self.asked: list[SamplingParams] = []
        self.said: list[Generation] = []
        self.length = 0

    @asynccontextmanager
    async def open(self, seed: int) -> AsyncIterator["ScriptedEngine"]:
        self.length = 0
        yield self

    async def abort(self) -> None:
        return

    async def generate(
        self, new_token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None = None
    ) -> Generation:
        assert begun is None
        self.heard.append(self.tokenizer.decode(list(new_token_ids), skip_special_tokens=False))
        self.asked.append(sampling)
        self.length += len(new_token_ids)
        turn = self.turns.pop(0)
        drawn = (
            [*self.tokenizer.encode(turn, add_special_tokens=False), self.eos_ids[0]] if isinstance(turn, str) else turn
        )
        room = self.max_context_length - self.length
        ids, reason, stop = end_of(list(drawn), sampling, room, self.tokenizer, self.eos_ids)
        self.length += len(ids)
        finish = cast(FinishReason, reason)
        text = self.tokenizer.decode(shown_ids(ids, finish, stop), skip_special_tokens=False)
        generation = Generation(ids, [LOGPROB] * len(ids), [VERSION] * len(ids), finish, stop, text)
        check_generation(generation, sampling, self.tokenizer, self.eos_ids)
        self.said.append(generation)
        return generation


def check_sample(sample: Sample) -> None:
    """What holds of every sample that a ScriptedEngine made: arrays aligned, observations masked."""
    n = len(sample.response_ids)
    assert len(sample.loss_mask) == len(sample.logprobs) == len(sample.policy_versions) == n
    for mask, logprob, version in zip(sample.loss_mask, sample.logprobs, sample.policy_versions, strict=True):
        assert (mask, logprob, version) in ((1, LOGPROB, VERSION), (0, 0.0, -1))
    assert sample.status in ("completed", "truncated", "failed")


def trained_ids(sample: Sample) -> list[int]:
    """The ids that are trained on."""
    return [i for i, mask in zip(sample.response_ids, sample.loss_mask, strict=True) if mask]
