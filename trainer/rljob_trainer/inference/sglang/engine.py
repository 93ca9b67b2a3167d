"""SGLang's in-process engine as an InferenceEngine.

The engine's own processes (scheduler and model, one per GPU; detokenizer) are children of this one; the tokenizer
manager runs here, on the event loop that constructed it, and is called directly: its blocking front is for scripts.
"""

import asyncio
import gc
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from rljob.types import EngineError, Generation, SamplingParams, Tokenizer, shown_ids
from rljob_api.errors import UserError

from rljob_trainer.inference.interface import InferenceEngine
from rljob_trainer.inference.sglang.decoding import Decoder
from rljob_trainer.inference.sglang.health import Event, Health
from rljob_trainer.inference.sglang.requests import Part, join, read_answer, sampling_request, settled
from rljob_trainer.inference.sglang.served import Told, read_told, served_name, whole
from rljob_trainer.weights.fingerprint import differing, entries
from rljob_trainer.weights.fingerprint import digest as digest_of

logger = logging.getLogger(__name__)
DRAIN_SECONDS = 60.0
ABORT_EVERY_SECONDS = 0.05
YOUNG_OBJECTS = 100_000
"""New objects after which the collector looks at them; Python's own 700 are those of one and a half responses."""


class SglangEngine(InferenceEngine):
    """One engine over `tp_size` GPUs. All methods belong to the event loop that made it.

    A turn that new weights interrupt goes on with them: each of its tokens carries the version that made it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_context_length: int,
        arguments: Mapping[str, Any],
        *,
        vocab_size: int,
        eos_ids: Sequence[int] = (),
        deterministic: bool = False,
        folder: tempfile.TemporaryDirectory[str] | None = None,
        make: Callable[..., Any] | None = None,
    ) -> None:
        """`folder` is where the engine was started from, kept while it lives. `make` builds the engine from
        `arguments`; by default SGLang's."""
        self.tokenizer, self.max_context_length = tokenizer, max_context_length
        self.decoder = Decoder(tokenizer)
        self.version: int | None = None
        self.digest: str | None = None
        self.health = Health.begin(time.monotonic())
        self.vocab_size = vocab_size
        self._arguments, self._deterministic = dict(arguments), deterministic
        self.eos_ids = frozenset(i for i in (*eos_ids, tokenizer.eos_token_id) if i is not None)
        self._tp = int(arguments.get("tp_size", 1))
        self._serves = asyncio.Event()
        self._in_flight = 0
        self._generated = self._prompted = self._requests = self._interrupted = 0
        self._sync_seconds = self._busy_seconds = 0.0
        self._update_began = self._busy_since = 0.0
        self._asleep = self._frozen = False
        self._folder = folder or tempfile.TemporaryDirectory(prefix="rljob-engine-")
        try:
            with _own_logging():
                self._engine = (make or _sglang)(**self._arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"spec.rollout.engineArgs: SGLang does not start with them: {error}") from error
        self._manager = self._engine.tokenizer_manager
        self._on("ready")

    # -- generating --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, seed: int) -> AsyncIterator["SglangSession"]:
        """A session. Its draws depend on `seed` with deterministic inference, else on the engine's own generator."""
        if self.version is None and not self._serves.is_set() and self.health.state == "dead":
            raise EngineError(f"the engine is dead: {self.health.why}")
        yield SglangSession(self, seed if self._deterministic else None)

    async def run_turn(
        self, session: "SglangSession", sampling: SamplingParams, begun: Part, versions: list[int]
    ) -> Part:
        """Generate after what `session` holds; `begun` is what the turn has already, `versions` grows with it."""
        parts = [begun] if begun.token_ids else []
        ids = session.ids + begun.token_ids
        room = min(sampling.max_new_tokens, self.max_context_length - len(session.ids)) - len(begun.token_ids)
        while room > 0:
            await self._serves.wait()
            if session.stopped:
                break
            version = self.version
            if version is None:
                raise EngineError(f"the engine serves nothing: {self.health.why or self.health.state}")
            session.request = uuid.uuid4().hex
            params = sampling_request(sampling, room, session.seed, self.eos_ids)
            part = await self._request(session.request, ids, params)
            parts.append(part)
            versions += [version] * len(part.token_ids)
            ids += part.token_ids
            room -= len(part.token_ids)
            if part.finish_reason != "abort" or session.stopped:
                break
            self._interrupted += 1
        if not parts:
            return Part([], [], "abort" if session.stopped else "length")
        turn = join(parts, sampling.stop, self.tokenizer)
        if turn.finish_reason == "abort" and not (session.stopped and room > 0):  # interrupted at its very last token
            turn = Part(turn.token_ids, turn.logprobs, "length")
        return settled(turn, sampling, self.eos_ids, self.tokenizer)

    def abort(self, request: str) -> None:
        """End a request: it returns what it has."""
        self._manager.abort_request(rid=request)

    async def _request(self, request: str, ids: list[int], params: dict[str, Any]) -> Part:
        if not self._in_flight:  # it had nothing to say
            self._busy_since = time.monotonic()
            self.health = self.health.alive(self._busy_since)
        self._in_flight += 1
        self._requests += 1
        try:
            answer = await self._engine.async_generate(
                input_ids=list(ids), sampling_params=params, return_logprob=True, rid=request
            )
        except ValueError as error:
            if "aborted" in str(error):
                return Part([], [], "abort")
            raise EngineError(f"SGLang refused a request of {len(ids)} tokens: {error}") from error
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._busy_seconds += time.monotonic() - self._busy_since
        part = read_answer(answer)
        self.health = self.health.answer(time.monotonic())
        self._generated += len(part.token_ids)
        self._prompted += len(ids)
        return part

    # -- weights -----------------------------------------------------------------------------------------------------

    async def begin_update(self) -> None:
        """Interrupt what is under way and serve nothing until `finish_update`. Raises EngineError when it goes on."""
        self._update_began = time.monotonic()
        self._on("sync")
        self._serves.clear()
        self.version = self.digest = None
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._in_flight:
            self._manager.abort_request(abort_all=True)
            await asyncio.sleep(ABORT_EVERY_SECONDS)
            if time.monotonic() > deadline:
                raise EngineError(f"{self._in_flight} requests did not stop within {DRAIN_SECONDS:.0f} s")

    async def load_bucket(self, payloads: Sequence[bytes]) -> None:
        """Take over a flattened bucket by CUDA IPC: payload k is for GPU k of this engine."""
        from sglang.srt.managers.io_struct import UpdateWeightsFromTensorReqInput

        if len(payloads) != self._tp:
            raise EngineError(f"{len(payloads)} payloads for {self._tp} GPUs")
        request = UpdateWeightsFromTensorReqInput(
            serialized_named_tensors=list(payloads), load_format="flattened_bucket", flush_cache=False
        )
        self._hold(await self._manager.update_weights_from_tensor(request, None))

    async def join_group(self, host: str, port: int, first_rank: int, world_size: int, name: str) -> None:
        """Join the NCCL group `name` with this engine's GPUs as ranks from `first_rank` on."""
        from sglang.srt.managers.io_struct import InitWeightsUpdateGroupReqInput

        request = InitWeightsUpdateGroupReqInput(
            master_address=host, master_port=port, rank_offset=first_rank, world_size=world_size, group_name=name
        )
        self._hold(await self._manager.init_weights_update_group(request, None))

    async def leave_group(self, name: str) -> None:
        """Leave a group: its members changed, and a new one follows."""
        from sglang.srt.managers.io_struct import DestroyWeightsUpdateGroupReqInput

        request = DestroyWeightsUpdateGroupReqInput(group_name=name)
        self._hold(await self._manager.destroy_weights_update_group(request, None))

    async def receive_bucket(
        self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], group: str
    ) -> None:
        """Take over a flattened bucket that rank 0 of `group` broadcasts."""
        from sglang.srt.managers.io_struct import UpdateWeightsFromDistributedReqInput

        request = UpdateWeightsFromDistributedReqInput(
            names=list(names),
            dtypes=list(dtypes),
            shapes=[list(shape) for shape in shapes],
            group_name=group,
            load_format="flattened_bucket",
            flush_cache=False,
        )
        self._hold(await self._manager.update_weights_from_distributed(request, None))

    async def load_folder(self, folder: str) -> None:
        """Take over a folder of safetensors files, with a config beside them."""
        from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput

        request = UpdateWeightFromDiskReqInput(model_path=folder, load_format="auto", flush_cache=False)
        self._hold(await self._manager.update_weights_from_disk(request, None))

    async def load_weights(self, weights: Mapping[str, Any], version: int, digest: str | None = None) -> str:
        """Serve whole tensors, by way of a file: for jobs without a trainer. Returns their digest."""
        import torch
        from safetensors.torch import save_file

        dtype = getattr(torch, str(self._arguments["dtype"]))
        tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
        table = entries(tensors)
        sent = digest_of(table)
        if digest and digest != sent:
            raise EngineError(f"weights version {version}: the digest is {sent[:16]}…, {digest[:16]}… was sent")
        await self.begin_update()
        with tempfile.TemporaryDirectory(prefix="rljob-weights-") as folder:
            await asyncio.to_thread(save_file, tensors, f"{folder}/model.safetensors", {"format": "pt"})
            await self.load_folder(folder)
        return await self.finish_update(version, sent, table)

    async def finish_update(self, version: int, digest: str, table: Mapping[str, Sequence[Any]]) -> str:
        """Drop what the caches hold of the old weights, check the new ones, serve them as `version`.

        Raises EngineError when what is served is not what `table` (the sender's entries by name) says.
        """
        served = await self._verify(table, digest)
        if not await self._flush():
            raise EngineError("the engine's cache could not be emptied after new weights")
        await self._freeze_garbage()
        self.version, self.digest = version, served
        self._on("synced")
        self._sync_seconds += time.monotonic() - self._update_began
        self._serves.set()
        return served

    async def _freeze_garbage(self) -> None:
        """Keep Python's collector out of a rollout's way. What is there once the engine serves it leaves alone, in all
        of the engine's processes: it would walk through all the modules' objects again and again, 0.3 s each time.
        What a rollout makes, a tuple for each token, it looks at less often; here alone, where answers arrive."""
        if not self._frozen and hasattr(self._manager, "freeze_gc"):
            await self._manager.freeze_gc()
            gc.set_threshold(YOUNG_OBJECTS, 20, 50)
        self._frozen = True

    async def sleep(self) -> None:
        """Give back the memory of weights, KV cache and graphs."""
        from sglang.srt.managers.io_struct import ReleaseMemoryOccupationReqInput

        if self._asleep:
            return
        await self.begin_update()
        deadline = time.monotonic() + DRAIN_SECONDS
        while not await self._flush():  # the scheduler may still hold the last batch's results
            await asyncio.sleep(ABORT_EVERY_SECONDS)
            if time.monotonic() > deadline:
                raise EngineError(f"the engine was not idle within {DRAIN_SECONDS:.0f} s")
        await self._ask_served({})  # the engine's own process is prepared for what follows; see `served.quiet_release`
        await self._manager.release_memory_occupation(ReleaseMemoryOccupationReqInput(tags=None), None)
        self._asleep = True

    async def wake(self, tags: Sequence[str]) -> None:
        """Take memory again for `tags`."""
        from sglang.srt.managers.io_struct import ResumeMemoryOccupationReqInput

        await self._manager.resume_memory_occupation(ResumeMemoryOccupationReqInput(tags=list(tags)), None)
        if "kv_cache" in tags:
            self._asleep = False

    async def _flush(self) -> bool:
        answer = await self._manager.flush_cache()
        return bool(getattr(answer, "success", answer))

    async def _verify(self, table: Mapping[str, Sequence[Any]], wanted: str) -> str:
        """The digest over `table` as this engine serves it."""
        sent = {name: (str(dtype), tuple(shape), int(total)) for name, (dtype, shape, total) in table.items()}
        if digest_of(sent) != wanted:
            raise EngineError("the digest that was sent is not that of the table that was sent")
        told = await self._ask_served({served_name(name): shape for name, (_, shape, _) in sent.items()})
        try:
            found = whole(told)
        except ValueError as error:
            raise EngineError(str(error)) from error
        if missing := next((name for name in sent if served_name(name) not in found), None):
            raise EngineError(f"SGLang serves no tensor for {missing}")
        served = {name: found[served_name(name)] for name in sent}
        if wrong := differing(sent, served):
            raise EngineError(f"{len(wrong)} tensors are not served as they were sent, such as {wrong[0]}")
        return digest_of(served)

    async def _ask_served(self, shapes: Mapping[str, Sequence[int]]) -> list[dict[str, Told]]:
        """What each GPU's own process tells of the served tensors; see `served.report_served`."""
        from sglang.srt.managers.io_struct import UpdateWeightsFromTensorReqInput
        from sglang.srt.utils import MultiprocessingSerializer
        from torch import empty

        question = Path(self._folder.name) / "served.json"
        answers = [question.with_name(f"served.json.{rank}") for rank in range(self._tp)]
        for answer in answers:
            answer.unlink(missing_ok=True)
        question.write_text(json.dumps(shapes), encoding="utf-8")
        request = UpdateWeightsFromTensorReqInput(
            serialized_named_tensors=[MultiprocessingSerializer.serialize([(str(question), empty(0))])] * self._tp,
            load_format=self._arguments["custom_weight_loader"][0],
            flush_cache=False,
        )
        self._hold(await self._manager.update_weights_from_tensor(request, None))
        return [read_told(answer.read_text(encoding="utf-8")) for answer in answers]

    def _hold(self, result: Any) -> None:
        """Raises EngineError when SGLang says that an update failed."""
        success, message = bool(result[0]), str(result[1])
        self.health = self.health.alive(time.monotonic())
        if not success:
            raise EngineError(f"SGLang did not take over weights: {message}")

    # -- life --------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What `start` tells."""
        return {
            "device": "cuda",
            "dtype": self._arguments.get("dtype", "auto"),
            "deterministic": self._deterministic,
            "tp_size": self._tp,
            "max_context_length": self.max_context_length,
        }

    def check(self, stuck_seconds: float) -> None:
        """Raises EngineError when a child process is gone, or nothing came back for `stuck_seconds` under load (longer
        while the first requests compile)."""
        now = time.monotonic()
        if not self._in_flight:
            self.health = self.health.alive(now)
        gone = [pid for pid in self._children() if not _lives(pid)]
        if gone and self.health.state != "dead":
            self._on("lost", f"process {gone[0]} of the engine is gone")
        if self.health.state == "dead":
            raise EngineError(f"the engine is dead: {self.health.why}")
        heard = float(getattr(self._manager, "last_receive_tstamp", 0.0) or 0.0)
        if heard:
            self.health = self.health.alive(now - max(0.0, time.time() - heard))
        silence = self.health.overdue(now, stuck_seconds)
        if self._in_flight and silence is not None:
            raise EngineError(f"the engine has not answered for {silence:.0f} s")

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is under way."""
        busy = time.monotonic() - self._busy_since if self._in_flight else 0.0
        return {
            "busy_seconds": self._busy_seconds + busy,
            "generated_tokens": float(self._generated),
            "prefilled_tokens": float(self._prompted),
            "requests": float(self._requests),
            "interrupted": float(self._interrupted),
            "sync_seconds": self._sync_seconds,
            "running": float(self._in_flight),
        }

    def shutdown(self) -> None:
        """End the engine's processes."""
        self._on("lost", "shut down")
        self._serves.set()
        self._engine.shutdown()
        self._folder.cleanup()

    def _children(self) -> list[int]:
        get = getattr(self._engine, "get_all_child_pids", None)
        return [int(pid) for pid in get()] if get is not None else []

    def _on(self, event: Event, why: str = "") -> None:
        self.health = self.health.on(event, time.monotonic(), why)


class SglangSession:
    """One sequence. SGLang's prefix cache keeps what its turns have in common."""

    def __init__(self, engine: SglangEngine, seed: int | None) -> None:
        self._engine, self.seed = engine, seed
        self.ids: list[int] = []
        """Prompt, turns and observations so far."""
        self.request = ""
        """The last request."""
        self.stopped = False

    async def generate(
        self, new_token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None = None
    ) -> Generation:
        """Append `new_token_ids`, then generate until a stop, `max_new_tokens` or the end of the context.

        `begun`: see `rljob.types.Session`. Raises EngineError when the engine is lost, ValueError for token ids
        outside the vocabulary.
        """
        engine = self._engine
        if any(not 0 <= token < engine.vocab_size for token in new_token_ids):
            raise ValueError(f"token ids must lie in 0 … {engine.vocab_size - 1}")
        self.ids += new_token_ids
        self.stopped = False
        before = Part([], [], "abort") if begun is None else Part(list(begun.token_ids), list(begun.logprobs), "abort")
        versions = [] if begun is None else list(begun.policy_versions)
        turn = await engine.run_turn(self, sampling, before, versions)
        self.ids += turn.token_ids
        text = await engine.decoder.text(shown_ids(turn.token_ids, turn.finish_reason, turn.stop))
        count = len(turn.token_ids)
        return Generation(turn.token_ids, turn.logprobs, versions[:count], turn.finish_reason, turn.stop, text)

    async def abort(self) -> None:
        """End the generation that is under way: it returns what it has."""
        self.stopped = True
        if self.request:
            self._engine.abort(self.request)


@contextmanager
def _own_logging() -> Iterator[None]:
    """SGLang sets up the root logger of the process that starts it: our lines would no longer say whose they are, and
    those below its `log_level` be lost. The level becomes its own loggers' alone, all else is as before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        logging.getLogger("sglang").setLevel(root.level)
        root.handlers[:] = handlers
        root.setLevel(level)


def _sglang(**arguments: Any) -> Any:
    # An answer longer than the model's positions is never asked for; SGLang counts its own slack against them.
    os.environ.setdefault("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "1")
    try:
        from sglang.srt.entrypoints.engine import Engine
    except ModuleNotFoundError as error:
        raise UserError(
            f"spec.rollout.engine: sglang needs {error.name!r}, which is not installed here",
            hint="use the GPU image, or engine: torch",
        ) from None
    return Engine(**arguments)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
