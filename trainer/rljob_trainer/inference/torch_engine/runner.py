"""The engine's work on its thread: admits turns to slots, prefills, decodes."""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rljob.types import FinishReason, SamplingParams

from rljob_trainer.inference.torch_engine.architecture import Architecture
from rljob_trainer.inference.torch_engine.attention import Pages, page_size
from rljob_trainer.inference.torch_engine.cache import PagedCache, Saved
from rljob_trainer.inference.torch_engine.linear import Rows, choose_rows, row_counts
from rljob_trainer.inference.torch_engine.model import Batch, Decoder
from rljob_trainer.inference.torch_engine.sampling import RowSampling, draws, row_sampling, sample
from rljob_trainer.inference.torch_engine.slots import SlotTable
from rljob_trainer.inference.torch_engine.stopping import Stops
from rljob_trainer.inference.torch_engine.weights import ServedWeights

PREFILL_TOKENS = 1024
"""Forced tokens of one pass at most, if it is more than one sequence's."""
PREFILL_PATIENCE = 4
"""Passes that a prefill waits at most for others to join it."""


@dataclass(slots=True)
class Turn:
    """A generation asked for: tokens to append first, then how to draw."""

    forced: list[int]
    sampling: SamplingParams
    done: Callable[["TurnResult"], None]
    begun: "TurnResult | None" = None
    """What an earlier turn gave before it was aborted: appended too, and part of the result."""


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
    """One token sequence: a session as the runner sees it."""

    draws: NDArray[np.float64]
    slot: int | None = None
    """Its row in the table while a turn is under way."""
    pages: list[int] = field(default_factory=list)
    """Its pages of the cache between turns."""
    saved: Saved | None = None
    """The content of its pages, when others needed them."""
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

    With `deterministic`, what a sequence gets depends on its own tokens, seed and turns alone: products are cut so
    that rows are independent (`linear`), attention is put together page by page
    (`attention`), the prefill's chunks follow
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
        self.device, self.deterministic, self.chunk = weights.embedding.device, deterministic, prefill_chunk
        self.max_length, self.slots, self.stops, self.version = max_length, slots, stops, 0
        self.counts = row_counts(slots + max(PREFILL_TOKENS, prefill_chunk))
        if rows is None:
            rows = self._measure(weights) if deterministic else Rows(0)
        page = page_size(max_length)
        pages = -(-max_length // page)
        # Turns under way always find a page: those of resting streams can be set aside.
        self.cache = PagedCache(architecture, slots * pages, page, self.device)
        self.model = Decoder(config, architecture, weights, self.cache, rows, max_length)
        self.table = SlotTable(slots, max_length, pages)
        self.occupants: list[Stream | None] = [None] * slots
        self.resting: OrderedDict[int, Stream] = OrderedDict()
        """Streams between turns that hold pages, by their id(), oldest first."""
        self.waiting: deque[Stream] = deque()
        """Streams whose turn waits for a slot. Begun sequences go first: what they hold is free the sooner."""
        self.prefilling: list[Stream] = []
        """Streams in a slot with forced tokens to come."""
        self.free = list(range(slots))
        """Heap: the lowest free slot comes first."""
        self.busy = 0
        self._patience = PREFILL_PATIENCE
        self._begun = 0
        self._last_sampling: tuple[tuple[bytes, int, int], RowSampling] | None = None
        self.generated_tokens = self.prefilled_tokens = self.steps = 0

    # -- sequences -------------------------------------------------------------------------------------------------

    def open(self, seed: int) -> Stream:
        """A new, empty sequence."""
        return Stream(draws(seed, self.max_length))

    def submit(self, stream: Stream, turn: Turn) -> None:
        """Queue a turn. One without any room in the context ends at once, empty."""
        begun = turn.begun or TurnResult([], [], [], "length")
        pending = [*([] if stream.last is None else [stream.last]), *turn.forced, *begun.token_ids]
        full = stream.length + len(pending) >= self.max_length
        if not pending or full or turn.sampling.max_new_tokens <= len(begun.token_ids):
            turn.done(replace(begun, reason="length"))
            return
        stream.turn, stream.pending = turn, pending
        if stream.length:
            self.waiting.appendleft(stream)
        else:
            self.waiting.append(stream)

    def abort(self, stream: Stream) -> None:
        """End a stream's turn with the tokens it has; the stream takes no turn after it."""
        turn, stream.turn = stream.turn, None
        if turn is None:
            return
        slot, result = stream.slot, turn.begun or TurnResult([], [], [], "abort")
        if slot is None:
            self.waiting.remove(stream)
        else:
            result = self._result(slot, "abort", None)
            if stream in self.prefilling:
                self.prefilling.remove(stream)
            self._vacate(stream)
            self.resting[id(stream)] = stream
        turn.done(replace(result, reason="abort"))

    def close(self, stream: Stream) -> None:
        """Forget a stream, whatever it is doing."""
        if stream in self.waiting:
            self.waiting.remove(stream)
        if stream in self.prefilling:
            self.prefilling.remove(stream)
        if stream.slot is not None:
            self._vacate(stream)
        self.resting.pop(id(stream), None)
        self.cache.give_back(stream.pages)
        stream.turn, stream.pages, stream.saved = None, [], None

    @property
    def active(self) -> bool:
        """Whether a step would do something."""
        return self.busy > 0 or bool(self.waiting)

    # -- one step ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> None:
        """Admit what waits, then one pass: a token for every decoding slot, a chunk for those with forced tokens."""
        self._admit()
        rows, group, chunk = np.flatnonzero(self.table.decoding), *self._chunks()
        if not len(rows) and not group:
            return
        drawing = self._forward(rows, group, chunk)
        self.steps += 1
        self._draw(drawing)

    def _admit(self) -> None:
        table = self.table
        while self.waiting and self.free:
            stream = self.waiting.popleft()
            assert stream.turn is not None
            self.resting.pop(id(stream), None)
            stream.slot = slot = heappop(self.free)
            self.occupants[slot] = stream
            self.prefilling.append(stream)
            self.busy += 1
            self._begun += 1
            sampling = stream.turn.sampling
            begun = stream.turn.begun
            room = self.max_length - stream.length - len(stream.pending)
            if begun is not None:
                room += len(begun.token_ids)
            stops = self.stops.number(sampling.stop, sampling.ignore_eos, sampling.stop_ids)
            table.begin(slot, stream.length, min(sampling.max_new_tokens, room), stops, sampling, stream.draws)
            if begun is not None:
                table.go_on(slot, begun.token_ids, begun.logprobs, begun.versions)
            if stream.saved is not None:
                stream.pages = [self._page() for _ in range(stream.saved[0].shape[1])]
                self.cache.restore(stream.pages, stream.saved)
                stream.saved = None
            for page in stream.pages:
                table.hold(slot, page)
            stream.pages = []

    def _chunks(self) -> tuple[list[Stream], int]:
        """Streams that prefill in this pass, and the size of a chunk. Deterministic: a constant."""
        if self.prefilling:
            self._patience -= 1
        if not self.prefilling or not self._worth_prefilling():
            return [], self.chunk
        self._patience = PREFILL_PATIENCE
        group, chunk = self.prefilling[: max(1, PREFILL_TOKENS // self.chunk)], self.chunk
        if not self.deterministic:
            chunk = min(chunk, -(-max(len(stream.pending) for stream in group) // 8) * 8)
        return group, chunk

    def _worth_prefilling(self) -> bool:
        """Whether enough streams wait for a prefill: a pass with one costs more, however few tokens it has."""
        many = len(self.prefilling) * 8 >= self.slots
        return many or self._patience <= 0 or not self.table.decoding.any()

    def _forward(self, rows: NDArray[np.int64], group: list[Stream], chunk: int) -> "_Drawing":
        """Run the pass. `rows` are the decoding slots."""
        table, page = self.table, self.cache.page
        ends = table.length[rows] + 1
        self._hold_pages(rows, ends)
        order = np.argsort(-ends, kind="stable")
        rows, ends = rows[order], ends[order]
        slots = np.array([stream.slot for stream in group], dtype=np.int64)
        sizes = np.array([min(len(stream.pending), chunk) for stream in group], dtype=np.int64)
        chunk_ends = table.length[slots] + sizes
        self._hold_pages(slots, chunk_ends)
        order = np.argsort(-chunk_ends, kind="stable")
        group, slots, sizes, chunk_ends = [group[i] for i in order], slots[order], sizes[order], chunk_ends[order]

        n, used = len(rows), len(rows) + int(sizes.sum())
        total = self._rows_for(used) if self.deterministic else used
        tokens, positions, writes = (np.zeros(total, dtype=np.int64) for _ in range(3))
        tokens[:n], positions[:n] = table.token[rows], ends - 1
        writes[:n] = table.pages[rows, (ends - 1) // page]
        offsets = np.arange(chunk)
        at = np.minimum(table.length[slots, None] + offsets, chunk_ends[:, None] - 1)
        real = offsets < sizes[:, None]
        tokens[n:used] = [token for stream in group for token in stream.pending[:chunk]]
        positions[n:used] = at[real]
        writes[n:used] = table.pages[slots[:, None], at // page][real]
        table.length[rows], table.length[slots] = ends, chunk_ends
        for stream in group:
            stream.pending = stream.pending[chunk:]
        done = np.array([not stream.pending for stream in group], dtype=bool)
        self.prefilled_tokens += used - n
        self.prefilling = [stream for stream in self.prefilling if stream.pending]
        batch = Batch(
            tokens=tokens,
            positions=positions,
            write_pages=writes,
            decoding=Pages.of(table.pages[rows], -(-ends // page)) if n else None,
            chunked=Pages.of(table.pages[slots], -(-chunk_ends // page)) if group else None,
            chunk=chunk,
            chunk_positions=at,
            chunk_places=np.flatnonzero(real),
        )
        last = n + np.cumsum(sizes) - 1
        return _Drawing(
            self.model.forward(batch), np.concatenate((np.arange(n), last[done])), np.concatenate((rows, slots[done]))
        )

    def _hold_pages(self, slots: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Give `slots` the pages for `ends` tokens."""
        missing = -(-ends // self.cache.page) - self.table.held[slots]
        for i in np.flatnonzero(missing > 0).tolist():
            for _ in range(int(missing[i])):
                self.table.hold(int(slots[i]), self._page())

    def _draw(self, drawing: "_Drawing") -> None:
        """Draw the next token of every slot whose sequence is at its end."""
        table, rows, used = self.table, drawing.slots, len(drawing.slots)
        if not used:
            return
        table.decoding[rows] = True
        padded = self._rows_for(used) if self.deterministic else used
        at = np.zeros(padded, dtype=np.int64)
        at[:used] = drawing.rows
        uniform = np.zeros(padded)
        uniform[:used] = table.uniforms[rows, table.length[rows]]
        logits = self.model.logits(drawing.hidden.index_select(0, self._tensor(at)))
        sampling = self._sampling(rows, padded)
        drawn, logprobs = sample(logits, sampling, self._tensor(uniform))
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

    def _sampling(self, slots: NDArray[np.int64], padded: int) -> RowSampling:
        """How `slots` draw. Mostly the same as in the step before."""
        key = (slots.tobytes(), padded, self._begun)
        if self._last_sampling is None or self._last_sampling[0] != key:
            table, rows = self.table, np.zeros(padded, dtype=np.int64)
            rows[: len(slots)] = slots
            temperature, top_p, top_k = table.temperature[rows], table.top_p[rows], table.top_k[rows]
            temperature[len(slots) :], top_p[len(slots) :], top_k[len(slots) :] = 1, 1, -1
            made = row_sampling(temperature, top_p, top_k, self.device)
            self._last_sampling = key, made
        return self._last_sampling[1]

    def _finish(self, row: int, token_ids: list[int], reason: FinishReason, stop: str | None) -> None:
        table, stream = self.table, self.occupants[row]
        assert stream is not None
        assert stream.turn is not None
        result = self._result(row, reason, stop)
        turn, stream.turn = stream.turn, None
        stream.length, stream.last = int(table.length[row]), token_ids[-1]
        self._vacate(stream)
        self.resting[id(stream)] = stream
        turn.done(result)

    def _result(self, row: int, reason: FinishReason, stop: str | None) -> TurnResult:
        table, n = self.table, int(self.table.count[row])
        tokens, logprobs, versions = table.tokens[row, :n], table.logprobs[row, :n], table.versions[row, :n]
        return TurnResult(tokens.tolist(), logprobs.tolist(), versions.tolist(), reason, stop)

    # -- slots and pages ---------------------------------------------------------------------------------------------

    def _vacate(self, stream: Stream) -> None:
        """Take a stream out of its slot; its pages stay its own."""
        slot = stream.slot
        assert slot is not None
        stream.pages = self.table.pages[slot, : self.table.held[slot]].tolist()
        self.table.decoding[slot] = False
        self.occupants[slot], stream.slot = None, None
        heappush(self.free, slot)
        self.busy -= 1

    def _page(self) -> int:
        """A free page; if need be, the stream that rests longest is set aside, bit for bit."""
        if not self.cache.free:
            _, stream = self.resting.popitem(last=False)
            stream.saved = self.cache.save(stream.pages)
            self.cache.give_back(stream.pages)
            stream.pages = []
        return self.cache.take()

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
