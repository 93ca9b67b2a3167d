"""The torch engine: an asyncio front to a runner that computes on a thread of its own."""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rljob.types import EngineError, Generation, SamplingParams, Tokenizer, shown_ids
from rljob_api.errors import UserError

from rljob_trainer.inference.interface import InferenceEngine
from rljob_trainer.inference.torch_engine.architecture import architecture_of
from rljob_trainer.inference.torch_engine.linear import Rows
from rljob_trainer.inference.torch_engine.runner import Runner, Stream, Turn, TurnResult, chunk_of
from rljob_trainer.inference.torch_engine.stopping import Stops
from rljob_trainer.inference.torch_engine.weights import ServedWeights
from rljob_trainer.weights.arrays import Array
from rljob_trainer.weights.digest import weights_digest

IDLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class TorchEngineOptions:
    """`spec.rollout.engineArgs` of the torch engine, and what the job decides for it."""

    slots: int = 64
    """Sequences computed at once; more wait for a slot."""
    prefill_chunk: int = 32
    """Tokens of a prompt or observation computed at once for one sequence; rounded up to a power of two."""
    deterministic: bool = True
    """Bit-for-bit results, whatever runs beside; else shapes shrink to what is active."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @classmethod
    def from_args(cls, args: Mapping[str, Any], **decided: Any) -> "TorchEngineOptions":
        """Read `engineArgs`. Raises UserError for an unknown key or a value that is no positive integer."""
        names = {"slots": "slots", "prefillChunk": "prefill_chunk"}
        for key, value in args.items():
            if key not in names:
                raise UserError(f"spec.rollout.engineArgs.{key}: the torch engine takes {', '.join(names)}.")
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"spec.rollout.engineArgs.{key}: {value!r} must be a positive integer.")
        return cls(**{names[key]: value for key, value in args.items()}, **decided)


class TorchEngine(InferenceEngine):
    """A batched inference engine for Llama-like transformers models.

    `config` is the transformers config; weights come by `load_weights`, before which nothing is generated.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Tokenizer,
        max_context_length: int,
        options: TorchEngineOptions | None = None,
        *,
        eos_ids: Sequence[int] | None = None,
        rows: Rows | None = None,
    ) -> None:
        """`eos_ids` end a generation; by default those of config and tokenizer."""
        options = options or TorchEngineOptions()
        architecture = architecture_of(config)
        if max_context_length > architecture.max_positions:
            raise UserError(
                f"spec.rollout.maxContextLength: {max_context_length} tokens are more than the model's "
                f"{architecture.max_positions} positions."
            )
        self.tokenizer, self.max_context_length, self.options = tokenizer, max_context_length, options
        self.version: int | None = None
        self.digest: str | None = None
        device = torch.device(options.device)
        self._weights = ServedWeights(architecture, device, options.dtype)
        if eos_ids is None:
            eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
            eos_ids = sorted({i for i in (*eos, tokenizer.eos_token_id) if i is not None})
        self._runner = Runner(
            config,
            architecture,
            self._weights,
            Stops(tokenizer, architecture.vocab_size, eos_ids),
            slots=options.slots,
            prefill_chunk=chunk_of(options.prefill_chunk),
            max_length=max_context_length,
            deterministic=options.deterministic,
            rows=rows,
        )
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        self._futures: set[asyncio.Future[Any]] = set()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._stopping = False
        self._beat = time.monotonic()
        self._busy_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="torch-engine", daemon=True)
        self._thread.start()

    # -- serving -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, seed: int) -> AsyncIterator["TorchSession"]:
        """A session whose draws depend on `seed` and the token's position alone."""
        if self.version is None:
            raise EngineError("the engine has no weights yet")
        stream = self._runner.open(seed)
        try:
            yield TorchSession(self, stream)
        finally:
            self._commands.put(lambda: self._runner.close(stream))

    async def load_weights(
        self, weights: Mapping[str, torch.Tensor | Array], version: int, digest: str | None = None
    ) -> str:
        """Serve `weights` (all, by Hugging Face names) as `version` from the next step on; returns their digest.

        The digest is computed over the tensors that are served. Raises EngineError when it is not `digest`; the
        engine then refuses to serve until a load succeeds.
        """

        def load() -> str:
            # On the engine's own thread, between two steps: nobody sees half of it, and a turn that comes meanwhile
            # is served by the new weights. Only a load that fails leaves none to serve.
            try:
                return take_over()
            except BaseException:
                self.version = self.digest = None
                raise

        def take_over() -> str:
            self._weights.load(weights)
            served = weights_digest(self._weights.served(weights))
            if digest is not None and served != digest and not self._cast_of(weights, digest):
                raise EngineError(
                    f"weights version {version}: digest {served[:12]}… is served, {digest[:12]}… was sent"
                )
            self.version = self._runner.version = version
            self.digest = digest or served
            return self.digest

        return str(await self._call(load))

    async def served_digest(self, names: Mapping[str, object]) -> str:
        """Digest of what is served now, computed anew."""
        return str(await self._call(lambda: weights_digest(self._weights.served(names))))

    def _cast_of(self, weights: Mapping[str, torch.Tensor | Array], digest: str) -> bool:
        """Whether `weights` are what was sent and are served in another precision."""
        return weights_digest(weights) == digest and self._weights.shows(weights)

    # -- health ------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What a worker tells of its engine at the start."""
        return {
            "device": self.options.device,
            "dtype": str(self.options.dtype).removeprefix("torch."),
            "deterministic": self.options.deterministic,
            "slots": self.options.slots,
            "max_context_length": self.max_context_length,
        }

    def check(self, stuck_seconds: float) -> None:
        """Raises EngineError when the engine's thread is dead, or has not finished a step for `stuck_seconds`."""
        if self._failure is not None:
            raise EngineError(f"the engine died: {type(self._failure).__name__}: {self._failure}") from self._failure
        if not self._thread.is_alive():
            raise EngineError("the engine is shut down")
        age = time.monotonic() - self._beat
        if age > stuck_seconds:
            raise EngineError(f"the engine has not finished a step for {age:.0f} s")

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is under way."""
        runner = self._runner
        return {
            "generated_tokens": float(runner.generated_tokens),
            "prefilled_tokens": float(runner.prefilled_tokens),
            "steps": float(runner.steps),
            "busy_seconds": self._busy_seconds,
            "running": float(runner.busy),
            "waiting": float(len(runner.waiting)),
        }

    def shutdown(self, timeout: float = 10.0) -> None:
        """End the thread; what is under way fails with EngineError."""
        self._stopping = True
        self._commands.put(lambda: None)
        self._thread.join(timeout)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._stopping:
                self._beat = time.monotonic()
                self._run_commands(wait=not self._runner.active)
                if self._runner.active:
                    start = time.monotonic()
                    self._runner.step()
                    self._busy_seconds += time.monotonic() - start
                self._deliver()
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread is handed to everyone who waits
            self._failure = error
        finally:
            self._abandon()

    def _run_commands(self, wait: bool) -> None:
        try:
            command = self._commands.get(timeout=IDLE_SECONDS) if wait else self._commands.get_nowait()
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _resolve(self, future: "asyncio.Future[Any]", outcome: Any) -> None:
        self._outbox.setdefault(future.get_loop(), []).append((future, outcome))

    def _deliver(self) -> None:
        """Hand results over, one wake-up per event loop and step."""
        if not self._outbox:
            return
        outbox, self._outbox = self._outbox, {}
        for loop, results in outbox.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, results)

    def _abandon(self) -> None:
        with self._lock:
            self._stopping = True
            futures, self._futures = self._futures, set()
        reason = f"{type(self._failure).__name__}: {self._failure}" if self._failure else "shut down"
        for future in futures:
            self._resolve(future, EngineError(f"the engine died: {reason}"))
        self._deliver()

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the engine's thread, between two steps."""

        def run(future: "asyncio.Future[Any]") -> None:
            try:
                outcome = function()
            except EngineError as error:
                outcome = error
            self._resolve(future, outcome)

        return await self._ask(run)

    async def _ask(self, command: Callable[["asyncio.Future[Any]"], None]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._stopping:
                reason = f": {type(self._failure).__name__}: {self._failure}" if self._failure else ""
                raise EngineError(f"the engine is shut down{reason}")
            self._futures.add(future)
        self._commands.put(lambda: command(future))
        try:
            return await future
        finally:
            with self._lock:
                self._futures.discard(future)

    async def abort_turn(self, stream: Stream) -> None:
        """End the turn that a session has under way."""
        await self._call(lambda: self._runner.abort(stream))

    async def run_turn(
        self, stream: Stream, token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None = None
    ) -> Generation:
        """One turn of a session; see `TorchSession.generate`."""
        if self.version is None:
            raise EngineError("the engine has no weights to serve")
        forced = list(token_ids)
        earlier = None
        if begun is not None:
            earlier = TurnResult(begun.token_ids, begun.logprobs, begun.policy_versions, "abort")
        vocabulary = self._weights.architecture.vocab_size
        if any(not 0 <= token < vocabulary for token in (*forced, *(earlier.token_ids if earlier else ()))):
            raise ValueError(f"token ids must lie in 0 … {vocabulary - 1}")

        def submit(future: "asyncio.Future[Any]") -> None:
            self._runner.submit(stream, Turn(forced, sampling, lambda result: self._resolve(future, result), earlier))

        result: TurnResult = await self._ask(submit)
        ids = result.token_ids
        shown = shown_ids(ids, result.reason, result.stop)
        text = self.tokenizer.decode(shown, skip_special_tokens=False) if shown else ""
        return Generation(ids, result.logprobs, result.versions, result.reason, result.stop, text)


class TorchSession:
    """One sequence on a TorchEngine. Implements `rljob.types.Session`."""

    def __init__(self, engine: TorchEngine, stream: Stream) -> None:
        self._engine, self._stream = engine, stream

    async def generate(
        self, new_token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None = None
    ) -> Generation:
        """Append `new_token_ids` (and what was `begun`), then generate until a stop, `max_new_tokens` or the end of
        the context.

        Without room for one more token the generation is empty, with finish reason `length`.
        Raises EngineError when the engine is lost, ValueError for token ids outside the vocabulary.
        """
        return await self._engine.run_turn(self._stream, new_token_ids, sampling, begun)

    async def abort(self) -> None:
        """End the generation that is under way: it returns what it has. The session takes no turn after it."""
        await self._engine.abort_turn(self._stream)


def _settle(results: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, outcome in results:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
