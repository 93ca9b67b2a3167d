"""The engine's work on its thread: admits streams to slots, prefills, decodes, keeps the slots in use together."""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rljob_trainer.rollout.torch_engine.architecture import Architecture
from rljob_trainer.rollout.torch_engine.linear import Rows, choose_rows, row_counts
from rljob_trainer.rollout.torch_engine.model import Batch, Decoder, KVCache
from rljob_trainer.rollout.torch_engine.sampling import RowSampling, draws, sample
from rljob_trainer.rollout.torch_engine.slots import SlotTable
from rljob_trainer.rollout.torch_engine.stopping import Stops
from rljob_trainer.rollout.torch_engine.weights import ServedWeights
from rljob_trainer.rollout.types import FinishReason, SamplingParams

PREFILL_TOKENS = 1024
"""Tokens of one prefill pass, padding included."""


@dataclass(slots=True)
class Turn:
    """A generation asked for: tokens to append first, then how to draw."""

    forced: list[int]
    sampling: SamplingParams
    done: Callable[["TurnResult"], None]


@dataclass(slots=True)
class TurnResult:
    """What a turn gave, aligned one to one."""

    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    reason: FinishReason
    stop: str | None = None


@dataclass(slots=True, eq=False)
class Stream:
    """One token stream: a session as the runner sees it."""

    draws: np.ndarray
    slot: int | None = None
    saved: torch.Tensor | None = None
    """Keys and values while it holds no slot."""
    length: int = 0
    """Tokens in the cache, between turns."""
    last: int | None = None
    """The token drawn last: it enters the cache with the next turn."""
    turn: Turn | None = None
    pending: list[int] = field(default_factory=list)
    """Forced tokens not in the cache yet."""


@dataclass(frozen=True, slots=True)
class _Drawing:
    """After a pass: the slots that get a token, and the row of `hidden` that each is drawn from."""

    hidden: torch.Tensor
    rows: NDArray[np.int64]
    slots: NDArray[np.int64]


class Runner:
    """Continuous batching over slots. Not thread-safe: one thread calls it.

    With `deterministic`, what a stream gets depends on its own tokens, seed and turns alone: products are cut so
    that rows are independent (`linear`), attention adds up in fixed blocks (`attention`), the prefill's chunks follow
    from the turn's own length, and draws from seed and position.
    """

    def __init__(
        self,
        config: Any,
        architecture: Architecture,
        weights: ServedWeights,
        stops: Stops,
        *,
        slots: int,
        prefill_chunk: int,
        max_length: int,
        deterministic: bool,
        rows: Rows | None = None,
    ) -> None:
        embedding = weights.embedding
        self.device, self.deterministic, self.chunk = embedding.device, deterministic, prefill_chunk
        self.max_length, self.slots, self.stops, self.version = max_length, slots, stops, 0
        self.counts = row_counts(slots + max(PREFILL_TOKENS, prefill_chunk))
        if rows is None:
            rows = self._measure(weights) if deterministic else Rows(0)
        self.cache = KVCache(architecture, slots, max_length, self.device, embedding.dtype)
        self.model = Decoder(config, architecture, weights, self.cache, rows)
        self.table = SlotTable(slots, max_length)
        self.occupants: list[Stream | None] = [None] * slots
        self.resting: OrderedDict[int, Stream] = OrderedDict()
        """Sequences between turns that still hold a slot, oldest first."""
        self.waiting: deque[Stream] = deque()
        self.prefilling: list[Stream] = []
        """Streams in a slot with forced tokens to come."""
        self.free = list(range(slots))
        """Heap: the lowest free slot comes first."""
        self.busy = 0
        self.generated_tokens = self.prefilled_tokens = self.steps = 0

    # -- streams ---------------------------------------------------------------------------------------------------

    def open(self, seed: int) -> Stream:
        """A new, empty stream."""
        return Stream(draws(seed, self.max_length))

    def submit(self, stream: Stream, turn: Turn) -> None:
        """Queue a turn. One without any room in the context ends at once, empty."""
        pending = [*([] if stream.last is None else [stream.last]), *turn.forced]
        if not pending or stream.length + len(pending) >= self.max_length or turn.sampling.max_new_tokens < 1:
            turn.done(TurnResult([], [], [], "length"))
            return
        stream.turn, stream.pending = turn, pending
        self.waiting.append(stream)

    def close(self, stream: Stream) -> None:
        """Forget a stream, whatever it is doing."""
        stream.saved = None
        if stream.turn is not None and stream in self.waiting:
            self.waiting.remove(stream)
        if stream.slot is not None:
            self._vacate(stream)

    @property
    def active(self) -> bool:
        """Whether a step would do something."""
        return self.busy > 0 or bool(self.waiting)

    # -- one step ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> None:
        """Admit what waits, then one pass: a token for every decoding slot, a chunk for those with forced tokens."""
        self._admit()
        self._compact()
        rows, group, chunk = np.flatnonzero(self.table.decoding), *self._chunks()
        if not len(rows) and not group:
            return
        finished = self._forward(rows, group, chunk)
        self.steps += 1
        self._draw(finished)

    def _admit(self) -> None:
        while self.waiting:
            stream = self.waiting[0]
            if stream.slot is None:
                if not self.free and not self.resting:
                    return
                if not self.free:
                    self._park(next(iter(self.resting.values())))
                stream.slot = heappop(self.free)
                self.occupants[stream.slot] = stream
                if stream.saved is not None:
                    self.cache.restore(stream.slot, stream.saved)
                    stream.saved = None
            else:
                del self.resting[stream.slot]
            self.waiting.popleft()
            self.prefilling.append(stream)
            self.busy += 1
            assert stream.turn is not None
            sampling = stream.turn.sampling
            room = self.max_length - stream.length - len(stream.pending)
            stops = self.stops.number(sampling.stop, sampling.ignore_eos)
            limit = min(sampling.max_new_tokens, room)
            self.table.begin(stream.slot, stream.length, limit, stops, sampling, stream.draws)

    def _compact(self) -> None:
        """Bring the decoding slots to the front, where their number is well below the last one's."""
        rows = np.flatnonzero(self.table.decoding)
        size = len(rows) + len(rows) // 8
        if not len(rows) or rows[-1] < size:
            return
        places = (row for row in range(size) if self.occupants[row] is None or row in self.resting)
        for source, target in zip(rows[rows >= size].tolist(), places, strict=False):
            if target in self.resting:
                self._park(self.resting[target])
            stream = self.occupants[source]
            assert stream is not None
            self.free.remove(target)
            heapify(self.free)
            self.table.move(source, target)
            self.cache.move(source, target, int(self.table.length[target]))
            self.occupants[target], self.occupants[source], stream.slot = stream, None, target
            heappush(self.free, source)

    def _chunks(self) -> tuple[list[Stream], int]:
        """Streams that prefill in this pass, and the size of a chunk. Deterministic: a constant."""
        if not self.prefilling:
            return [], self.chunk
        group, chunk = self.prefilling[: max(1, PREFILL_TOKENS // self.chunk)], self.chunk
        if not self.deterministic:
            chunk = min(chunk, -(-max(len(stream.pending) for stream in group) // 8) * 8)
        return group, chunk

    def _forward(self, rows: NDArray[np.int64], group: list[Stream], chunk: int) -> "_Drawing":
        """Run the pass. `rows` are the decoding slots."""
        table = self.table
        n = int(rows[-1]) + 1 if len(rows) else 0
        size = n + len(group) * chunk
        if self.deterministic:
            size = self._rows_for(size)
        tokens, positions = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        writes = np.full(size, self.cache.padding_slot, dtype=np.int64)
        tokens[rows], positions[rows], writes[rows] = table.token[rows], table.length[rows], rows
        table.length[rows] += 1
        slots, at, finished = np.zeros(len(group), dtype=np.int64), rows.tolist(), rows.tolist()
        for i, stream in enumerate(group):
            slot, first = stream.slot or 0, n + i * chunk
            part, stream.pending = stream.pending[:chunk], stream.pending[chunk:]
            start, end = int(table.length[slot]), int(table.length[slot]) + len(part)
            slots[i], table.length[slot] = slot, end
            tokens[first : first + len(part)] = part
            positions[first : first + chunk] = np.minimum(np.arange(start, start + chunk), end - 1)
            writes[first : first + len(part)] = slot
            self.prefilled_tokens += len(part)
            if not stream.pending:
                finished.append(slot)
                at.append(first + len(part) - 1)
        if group:
            self.prefilling = [stream for stream in self.prefilling if stream.pending]
        batch = Batch(
            tokens=self._tensor(tokens),
            positions=self._tensor(positions),
            write_slots=self._tensor(writes),
            decoding=n,
            chunk_slots=self._tensor(slots),
            longest=int(positions[:n].max(initial=0)) + 1,
            longest_chunk=int(positions[n:].max(initial=0)) + 1,
        )
        hidden = self.model.forward(batch, chunk)
        return _Drawing(hidden, np.array(at, dtype=np.int64), np.array(finished, dtype=np.int64))

    def _draw(self, drawing: "_Drawing") -> None:
        """Draw the next token of every slot whose sequence is at its end."""
        table, rows, used = self.table, drawing.slots, len(drawing.slots)
        if not used:
            return
        table.decoding[rows] = True
        padding = self._rows_for(used) - used if self.deterministic else 0
        slots, at = np.pad(rows, (0, padding)), np.pad(drawing.rows, (0, padding))
        logits = self.model.logits(drawing.hidden.index_select(0, self._tensor(at)))
        temperature, top_p, top_k = table.temperature[slots], table.top_p[slots], table.top_k[slots]
        position = np.minimum(table.length[slots], self.max_length - 1)
        some_p, some_k = bool((top_p[:used] < 1).any()), bool((top_k[:used] >= 0).any())
        sampling = RowSampling(
            temperature=self._tensor(temperature),
            uniform=self._tensor(table.uniforms[slots, position]),
            top_p=self._tensor(top_p) if some_p else None,
            top_k=self._tensor(top_k) if some_k else None,
            all_greedy=not temperature[:used].any(),
        )
        drawn, logprobs = sample(logits, sampling)
        tokens = drawn.cpu().numpy()[:used]
        table.append(rows, tokens, logprobs.cpu().numpy()[:used], self.version)
        self.generated_tokens += used
        full = table.count[rows] >= table.limit[rows]
        flagged = full | self.stops.candidates[table.stops[rows], tokens]
        for i in np.flatnonzero(flagged).tolist():
            row = int(rows[i])
            token_ids = table.tokens[row, : table.count[row]].tolist()
            ended, stop = self.stops.check(int(table.stops[row]), token_ids)
            if ended or full[i]:
                self._finish(row, token_ids, "stop" if ended else "length", stop)

    def _finish(self, row: int, token_ids: list[int], reason: FinishReason, stop: str | None) -> None:
        table, stream = self.table, self.occupants[row]
        assert stream is not None
        assert stream.turn is not None
        n = len(token_ids)
        result = TurnResult(token_ids, table.logprobs[row, :n].tolist(), table.versions[row, :n].tolist(), reason, stop)
        turn, stream.turn = stream.turn, None
        stream.length, stream.last = int(table.length[row]), token_ids[-1]
        table.decoding[row] = False
        self.busy -= 1
        self.resting[row] = stream
        turn.done(result)

    # -- slots -------------------------------------------------------------------------------------------------------

    def _park(self, stream: Stream) -> None:
        """Take the slot from a resting stream; its keys and values are kept aside, bit for bit."""
        assert stream.slot is not None
        stream.saved = self.cache.save(stream.slot, stream.length)
        self._vacate(stream)

    def _vacate(self, stream: Stream) -> None:
        slot = stream.slot
        assert slot is not None
        if stream in self.prefilling:
            self.prefilling.remove(stream)
        if slot in self.resting:
            del self.resting[slot]
        elif stream.turn is not None:
            self.busy -= 1
        self.table.decoding[slot] = False
        self.occupants[slot], stream.slot = None, None
        heappush(self.free, slot)

    # -- shapes ------------------------------------------------------------------------------------------------------

    def _rows_for(self, n: int) -> int:
        return next(count for count in self.counts if count >= n)

    def _measure(self, weights: ServedWeights) -> Rows:
        layer = weights.layers[0]
        matrices: Sequence[torch.Tensor] = (layer.qkv, layer.output, layer.gate_up, layer.down, weights.head)
        with torch.inference_mode():
            return choose_rows(matrices, self.counts)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def chunk_of(asked: int) -> int:
    """The prefill chunk used: a power of two from 8 on, at least `asked` where possible, so that chunks fill rows."""
    chunk = 8
    while chunk < min(asked, PREFILL_TOKENS):
        chunk *= 2
    return chunk
