"""All that a new engine needs: build it, take whole weights, draw tokens, say how it is. It knows the interface alone,
and keeps the contract of `Generation`."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from rljob.types import EngineError, FinishReason, Generation, SamplingParams, Tokenizer, shown_ids
from rljob_api.rules.arithmetic import engine_context_length
from rljob_api.v1alpha1.job import RLJobSpec
from rljob_trainer.inference.interface import InferenceEngine
from rljob_trainer.models import build_config, build_model, end_of_sequence_ids, load_tokenizer
from rljob_trainer.weights import weights_digest
from rljob_trainer.weights.arrays import to_tensor


async def build(spec: RLJobSpec, job_dir: Path, engine_index: int) -> "PlainEngine":
    """What the catalogue names."""
    torch.set_num_threads(spec.trainer.threads_per_rank)
    tokenizer = load_tokenizer(spec.model, job_dir)
    config = build_config(spec.model, job_dir, tokenizer)
    longest = engine_context_length(spec, config.max_position_embeddings)
    eos_ids = end_of_sequence_ids(spec.model, job_dir, config, tokenizer)
    model = build_model(spec.model, job_dir, tokenizer, seed=spec.seed)
    return PlainEngine(model, tokenizer, longest, eos_ids)


class PlainEngine(InferenceEngine):
    def __init__(self, model: Any, tokenizer: Tokenizer, max_context_length: int, eos_ids: Collection[int]) -> None:
        self.model, self.tokenizer, self.max_context_length = model.eval(), tokenizer, max_context_length
        self.eos_ids = frozenset(eos_ids)
        self.version: int | None = None
        self.digest: str | None = None
        self.counts = dict.fromkeys(("generated_tokens", "prefilled_tokens", "busy_seconds", "running"), 0.0)

    @asynccontextmanager
    async def open(self, seed: int) -> AsyncIterator["PlainSession"]:
        if self.version is None:
            raise EngineError("no weights yet")
        yield PlainSession(self, seed)

    async def load_weights(self, weights: Mapping[str, Any], version: int, digest: str | None = None) -> str:
        given = {name: w if isinstance(w, torch.Tensor) else to_tensor(w) for name, w in weights.items()}
        self.version = self.digest = None
        self.model.load_state_dict(given, strict=False)
        state = self.model.state_dict()
        served = weights_digest({name: state[name] for name in given})
        if digest is not None and served != digest:
            raise EngineError(f"weights version {version}: {served[:12]}… is served, {digest[:12]}… was sent")
        self.version, self.digest = version, served
        return served

    def facts(self) -> dict[str, Any]:
        return {
            "device": "cpu",
            "dtype": "float32",
            "deterministic": True,
            "max_context_length": self.max_context_length,
        }

    def check(self, stuck_seconds: float) -> None:
        """It computes on the event loop that asks, so whoever comes to ask finds it alive."""

    def stats(self) -> dict[str, float]:
        return dict(self.counts)

    def shutdown(self) -> None:
        self.version = self.digest = None


class PlainSession:
    def __init__(self, engine: PlainEngine, seed: int) -> None:
        self.engine, self.seed = engine, seed
        self.ids: list[int] = []
        self.aborted = False

    async def abort(self) -> None:
        self.aborted = True

    async def generate(
        self, new_token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None = None
    ) -> Generation:
        engine = self.engine
        engine.counts["prefilled_tokens"] += len(new_token_ids)
        engine.counts["running"] += 1
        began = time.monotonic()
        try:
            return await self._turn(new_token_ids, sampling, begun)
        finally:
            engine.counts["running"] -= 1
            engine.counts["busy_seconds"] += time.monotonic() - began

    async def _turn(
        self, new_token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None
    ) -> Generation:
        engine = self.engine
        self.ids += new_token_ids
        ids = list(begun.token_ids) if begun else []
        logprobs = list(begun.logprobs) if begun else []
        versions = list(begun.policy_versions) if begun else []
        limit = min(sampling.max_new_tokens, engine.max_context_length - len(self.ids))
        reason: FinishReason = "length"
        stop: str | None = None
        while len(ids) < limit:
            if self.aborted:
                reason = "abort"
                break
            if engine.version is None:
                raise EngineError("no weights")
            token, logprob = self._draw(self.ids + ids, sampling)
            ids.append(token)
            logprobs.append(logprob)
            versions.append(engine.version)
            engine.counts["generated_tokens"] += 1
            await asyncio.sleep(0)
            if not sampling.ignore_eos and token in engine.eos_ids.union(sampling.stop_ids):
                reason = "stop"
                break
            text = engine.tokenizer.decode(ids, skip_special_tokens=False) if sampling.stop else ""
            if found := [(text.find(string), string) for string in sampling.stop if string and string in text]:
                reason, stop = "stop", min(found)[1]
                break
        self.ids += ids
        shown = shown_ids(ids, reason, stop)
        text = engine.tokenizer.decode(shown, skip_special_tokens=False) if shown else ""
        return Generation(ids, logprobs, versions, reason, stop, text)

    @torch.no_grad()
    def _draw(self, ids: list[int], sampling: SamplingParams) -> tuple[int, float]:
        """A token and its log-probability under the temperature: a function of weights, seed and position."""
        logits = self.engine.model(torch.tensor([ids])).logits[0, -1].double()
        logprobs = torch.log_softmax(logits / (sampling.temperature or 1.0), -1)
        if sampling.temperature == 0.0:
            token = int(logits.argmax())
        else:
            cumulative = logprobs.exp().cumsum(-1)
            place = random.Random(f"{self.seed} {len(ids)}").random() * float(cumulative[-1])
            token = min(int(torch.searchsorted(cumulative, place, right=True)), len(cumulative) - 1)
        return token, float(logprobs[token])
