"""Unfinished samples: cut off, kept, and continued in a later rollout (partial rollouts, Kimi k1.5, arXiv:2501.12599).

A generate function is never told. It sees an engine whose sessions remember every turn. Cut off, the sample keeps
these turns as its `transcript`. Continued, the function runs again from the start: turns that ended are answered from
the transcript, the one that was cut goes on after its tokens, and what follows is generated. So any generate function
can be continued that asks for the same turns again; where it asks for others (a tool answered differently), the
recorded turns from there on are set aside and generated anew.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from rljob.types import Engine, Generation, Sample, SamplingParams, Session, Tokenizer, TurnRecord


class CutOffError(BaseException):
    """The sample's time is over. No `Exception`: a generate function that catches those must not swallow it."""


class ResumableEngine:
    """The engine as one sample sees it. Implements `rljob.types.Engine`.

    `budget`: tokens that the sample may be given in this rollout, over all turns; then it is cut off. None: no limit.
    """

    def __init__(self, engine: Engine, transcript: Sequence[Sequence[TurnRecord]], budget: int | None = None) -> None:
        self._engine = engine
        self._recorded = [list(turns) for turns in transcript]
        self.tokenizer: Tokenizer = engine.tokenizer
        self.max_context_length = engine.max_context_length
        self.budget = budget
        self.cut = False
        self.sessions: list[ResumableSession] = []
        self._opened = 0

    @asynccontextmanager
    async def open(self, seed: int) -> AsyncIterator["ResumableSession"]:
        """See `Engine.open`. Sessions are told apart by the order in which they are opened."""
        number, self._opened = self._opened, self._opened + 1
        recorded = self._recorded[number] if number < len(self._recorded) else []
        async with AsyncExitStack() as stack:
            session = ResumableSession(self, self._engine, seed, recorded, stack)
            self.sessions.append(session)
            yield session

    async def abort(self) -> bool:
        """Cut the sample off. Whether a generation was under way, which then ends by itself."""
        self.cut = True
        return any([await session.cut_off() for session in self.sessions])

    def transcript(self) -> list[list[TurnRecord]]:
        """All turns so far; those of sessions that were not opened again are as they were."""
        turns = [session.turns for session in self.sessions]
        return [*turns, *self._recorded[len(turns) :]]


class ResumableSession:
    """One sequence. The engine's own session is opened when the first token has to be generated."""

    def __init__(
        self, owner: ResumableEngine, engine: Engine, seed: int, recorded: list[TurnRecord], stack: AsyncExitStack
    ) -> None:
        self._owner, self._engine, self._seed, self._stack = owner, engine, seed, stack
        self._replayed = 0
        self._history: list[int] = []
        """Tokens of earlier turns that the engine's session has not seen."""
        self._inner: Session | None = None
        self.turns = list(recorded)
        self.generating = False

    async def generate(
        self, new_token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None = None
    ) -> Generation:
        """See `Session.generate`. Raises CutOffError when the sample is cut off, its turns kept."""
        ids = list(new_token_ids)
        record = self.turns[self._replayed] if self._replayed < len(self.turns) else None
        if record is not None and record.new_token_ids != ids:
            del self.turns[self._replayed :]
            record = None
        if record is not None and record.generation.finish_reason != "abort":
            self._history += ids + record.generation.token_ids
            self._replayed += 1
            return record.generation
        if record is not None:
            begun = record.generation
            del self.turns[self._replayed :]
        return await self._generate(ids, sampling, begun)

    async def abort(self) -> None:
        """End the generation that is under way, if one is."""
        await self.cut_off()

    async def cut_off(self) -> bool:
        """As `abort`. Whether a generation was under way."""
        if self._inner is None or not self.generating:
            return False
        await self._inner.abort()
        return True

    async def _generate(self, ids: list[int], sampling: SamplingParams, begun: Generation | None) -> Generation:
        owner, had = self._owner, 0 if begun is None else len(begun.token_ids)
        nothing = begun or Generation([], [], [], "abort")
        limit = sampling.max_new_tokens
        if owner.budget is not None:
            limit = min(limit, had + owner.budget)
        if owner.cut or (owner.budget is not None and owner.budget <= 0):
            self._keep(ids, nothing)
            raise CutOffError
        asked = replace(sampling, max_new_tokens=limit)
        self.generating = True
        try:
            if self._inner is None:
                self._inner = await self._stack.enter_async_context(self._engine.open(self._seed))
            if begun is None:
                generation = await self._inner.generate([*self._history, *ids], asked)
            else:
                generation = await self._inner.generate([*self._history, *ids], asked, begun)
        except asyncio.CancelledError:
            self._keep(ids, nothing)
            raise
        finally:
            self.generating = False
        self._history = []
        new = len(generation.token_ids) - had
        if owner.budget is not None:
            owner.budget -= new
        short = len(generation.token_ids) == limit < sampling.max_new_tokens
        if generation.finish_reason == "abort" or (generation.finish_reason == "length" and short):
            self._keep(ids, replace(generation, finish_reason="abort"))
            raise CutOffError
        self._keep(ids, generation)
        self._replayed += 1
        return generation

    def _keep(self, ids: list[int], generation: Generation) -> None:
        self.turns.append(TurnRecord(ids, generation))


def blank(sample: Sample) -> Sample:
    """The sample before its generate function has run; what it is continued from is in its transcript."""
    return replace(
        sample,
        metadata=dict(sample.metadata),
        response_ids=[],
        loss_mask=[],
        logprobs=[],
        policy_versions=[],
        response="",
        status="pending",
        reward=None,
        reward_parts={},
        info={},
        transcript=[],
    )


def tokens_kept(sample: Sample) -> int:
    """Generated tokens that an unfinished sample has so far."""
    return sum(len(turn.generation.token_ids) for turns in sample.transcript for turn in turns)
