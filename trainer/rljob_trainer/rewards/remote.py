"""Reward models over HTTP: samples in batches, bounded in time, retries and requests under way."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from rljob.types import Sample
from rljob_api.contract import environment_variables as variables
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardFunction

from rljob_trainer.http_caller import AwayError, CallError, HttpCaller
from rljob_trainer.rewards.arguments import Arguments
from rljob_trainer.rewards.pool import Outcome


class RemoteReward:
    """Asks a reward model at `url` to score samples.

    `protocol: batch` POSTs `{"samples": [{"prompt", "response", "label", "metadata", "source"} …]}` and expects
    `{"rewards": [number or {part: number} or null …]}`, one per sample in order; null is a failure of that sample.
    `protocol: single` POSTs `{"prompt", "response", "label", …}` and expects one number (or parts), as slime's
    `remote_rm` does.

    A request may take `timeout` seconds, its retries included. What is not answered, or not as it should be, is the
    failure of the samples of that request. After as many requests in a row without an answer as may be under way at
    once, the others of this call are not sent: a server that hangs costs a few time-outs, not one per request.
    """

    def __init__(self, function: RewardFunction, place: int, timeout: float) -> None:
        field = f"spec.reward.functions[{place}]"
        if function.url is None:
            raise UserError(f"{field}.url is required with name remote")
        args = Arguments(function.args, f"{field}.args", "remote")
        self._protocol = args.choice("protocol", ("batch", "single"))
        self._batch = args.integer("batchSize", 32) if self._protocol == "batch" else 1
        self._concurrency = args.integer("concurrency", 8)
        self._attempts = args.integer("retries", 3, least=0) + 1
        args.done()
        self._url, self._timeout = function.url, timeout
        self._headers: dict[str, str] = {}
        if function.token is not None:
            variable = function.token.env or variables.reward_token(place)
            token = os.environ.get(variable, "").strip()
            if not token:
                raise UserError(f"{field}.token: the environment variable {variable} is not set")
            self._headers["Authorization"] = f"Bearer {token}"

    def run(self, samples: Sequence[Sample]) -> list[Outcome]:
        """An outcome for every sample, in order. Not to be called within an event loop."""
        return asyncio.run(self._run(samples))

    async def _run(self, samples: Sequence[Sample]) -> list[Outcome]:
        batches = [samples[start : start + self._batch] for start in range(0, len(samples), self._batch)]
        limit, silent = asyncio.Semaphore(self._concurrency), _Silence(self._concurrency)
        caller = HttpCaller(self._url, timeout=self._timeout, headers=self._headers, attempts=self._attempts)
        async with caller:
            results = await asyncio.gather(*(self._ask(caller, batch, limit, silent) for batch in batches))
        return [outcome for result in results for outcome in result]

    async def _ask(
        self, caller: HttpCaller, batch: Sequence[Sample], limit: asyncio.Semaphore, silent: "_Silence"
    ) -> list[Outcome]:
        async with limit:
            if silent.given_up:
                said = f"{self._url} was not asked any more: {silent.reason}"
                return [Outcome(error=said, kind="no answer", away=True)] * len(batch)
            entries = [_entry(sample) for sample in batch]
            try:
                answer = await caller.post({"samples": entries} if self._protocol == "batch" else entries[0])
            except AwayError as error:
                silent.no_answer(str(error))
                outcome = Outcome(error=str(error), timed_out=error.timed_out, kind="no answer", away=True)
                return [outcome] * len(batch)
            except CallError as error:
                silent.answered()
                kind = f"HTTP {error.status}" if error.status else "no reward in the answer"
                return [Outcome(error=str(error), kind=kind, away=error.status >= 500)] * len(batch)
            silent.answered()
        rewards = answer.get("rewards") if self._protocol == "batch" and isinstance(answer, dict) else [answer]
        if not isinstance(rewards, list) or len(rewards) != len(batch):
            expected = f'{{"rewards": [… {len(batch)} numbers]}}'
            said = f"{self._url} answered something else than {expected}"
            return [Outcome(error=said, kind="no reward in the answer")] * len(batch)
        return [self._outcome(reward) for reward in rewards]

    def _outcome(self, reward: Any) -> Outcome:
        parts = reward if isinstance(reward, dict) else {"": reward}
        if not parts or not all(
            isinstance(part, int | float) and not isinstance(part, bool) for part in parts.values()
        ):
            return Outcome(error=f"{self._url} gave {str(reward)[:100]!r} for a reward", kind="no reward in the answer")
        if isinstance(reward, dict):
            return Outcome(value={str(key): float(part) for key, part in reward.items()})
        return Outcome(value=float(reward))


class _Silence:
    """Requests in a row that were not answered, and whether that is enough to give up."""

    def __init__(self, enough: int) -> None:
        self._enough, self._count = enough, 0
        self.given_up, self.reason = False, ""

    def no_answer(self, reason: str) -> None:
        self._count += 1
        self.given_up, self.reason = self.given_up or self._count >= self._enough, reason

    def answered(self) -> None:
        self._count = 0


def _entry(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "response": sample.response,
        "label": sample.label,
        "metadata": sample.metadata,
        "source": sample.source,
    }
