"""The engine's work on its thread: admits sequences to slots, prefills, decodes, keeps the slots in use together."""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
import torch

from rljob_trainer.rollout.torch_engine.architecture import Architecture
from rljob_trainer.rollout.torch_engine.linear import Rows, choose_rows, row_counts
from rljob_trainer.rollout.torch_engine.model import Decoder, KVCache
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
    """One token sequence: a session as the runner sees it."""

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
    closed: bool = False


class Runner:
    """Continuous batching over slots. Not thread-safe: one thread calls it.

    With `deterministic`, what a sequence gets depends on its own tokens, seed and turns alone: products are cut so
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
        self.counts = row_counts(max(slots, PREFILL_TOKENS, prefill_chunk))
        if rows is None:
            rows = self._measure(weights) if deterministic else Rows(0)
        total = self._rows_for(slots)
        self.cache = KVCache(architecture, total, max_length, self.device, embedding.dtype)
        self.model = Decoder(config, architecture, weights, self.cache, rows)
        self.table = SlotTable(total, max_length)
        self.trash = self.cache.capacity - 1
        self.occupants: list[Stream | None] = [None] * total
        self.resting: OrderedDict[int, Stream] = OrderedDict()
        """Sequences between turns that still hold a slot, oldest first."""
        self.waiting: deque[Stream] = deque()
        self.free = list(range(slots))
        """Heap: the lowest free slot comes first."""
        self.busy = 0
        self.generated_tokens = self.prefilled_tokens = self.steps = 0

    # -- sequences ---------------------------------------------------------------------------------------------------

    def open(self, seed: int) -> Stream:
        """A new, empty sequence."""
        return Stream(draws(seed, self.max_length))

    def submit(self, sequence: Stream, turn: Turn) -> None:
        """Queue a turn. One without any room in the context ends at once, empty."""
        pending = [*([] if sequence.last is None else [sequence.last]), *turn.forced]
        if not pending or sequence.length + len(pending) >= self.max_length or turn.sampling.max_new_tokens < 1:
            turn.done(TurnResult([], [], [], "length"))
            return
        sequence.turn, sequence.pending = turn, pending
        self.waiting.append(sequence)

    def close(self, sequence: Stream) -> None:
        """Forget a sequence, whatever it is doing."""
        sequence.closed, sequence.saved = True, None
        if sequence.turn is not None and sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.slot is not None:
            self._vacate(sequence)

    @property
    def active(self) -> bool:
        """Whether a step would do something."""
        return self.busy > 0 or bool(self.waiting)

    # -- one step ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> None:
        """Admit, prefill what was admitted, then one token for every decoding slot."""
        self._admit()
        while group := self._prefill_group():
            self._prefill(group)
        self._compact()
        if self.table.decoding.any():
            self._decode()
        self.steps += 1

    def _admit(self) -> None:
        while self.waiting:
            sequence = self.waiting[0]
            if sequence.slot is None:
                if not self.free and not self.resting:
                    return
                if not self.free:
                    self._park(next(iter(self.resting.values())))
                sequence.slot = heappop(self.free)
                self.occupants[sequence.slot] = sequence
                if sequence.saved is not None:
                    self.cache.restore(sequence.slot, sequence.saved)
                    sequence.saved = None
            else:
                del self.resting[sequence.slot]
            self.waiting.popleft()
            self.busy += 1
            assert sequence.turn is not None
            sampling = sequence.turn.sampling
            room = self.max_length - sequence.length - len(sequence.pending)
            stops = self.stops.number(sampling.stop, sampling.ignore_eos)
            limit = min(sampling.max_new_tokens, room)
            self.table.begin(sequence.slot, sequence.length, limit, stops, sampling, sequence.draws)

    def _prefill_group(self) -> list[Stream]:
        most = max(1, PREFILL_TOKENS // self.chunk)
        group = []
        for sequence in self.occupants:
            if sequence is not None and sequence.pending:
                group.append(sequence)
                if len(group) == most:
                    break
        return group

    def _prefill(self, group: list[Stream]) -> None:
        table, chunk = self.table, self.chunk
        if not self.deterministic:
            chunk = min(chunk, -(-max(len(sequence.pending) for sequence in group) // 8) * 8)
        held = [sequence.slot or 0 for sequence in group]
        size = self._rows_for(len(held) * chunk) // chunk if self.deterministic else len(held)
        slots = np.zeros(size, dtype=np.int64)
        slots[: len(held)] = held
        tokens = np.zeros((size, chunk), dtype=np.int64)
        positions = np.zeros((size, chunk), dtype=np.int64)
        writes = np.full((size, chunk), self.trash, dtype=np.int64)
        finished: list[Stream] = []
        last: list[int] = []
        for i, sequence in enumerate(group):
            part, sequence.pending = sequence.pending[:chunk], sequence.pending[chunk:]
            start, n = table.length[slots[i]], len(part)
            tokens[i, :n] = part
            positions[i] = np.minimum(start + np.arange(chunk), start + n - 1)
            writes[i, :n] = positions[i, :n]
            table.length[slots[i]] = start + n
            self.prefilled_tokens += n
            if not sequence.pending:
                finished.append(sequence)
                last.append(i * chunk + n - 1)
        longest = int(positions.max()) + 1
        hidden = self.model.prefill(
            self._tensor(slots), self._tensor(tokens), self._tensor(positions), self._tensor(writes), longest
        )
        if not finished:
            return
        rows = np.array([sequence.slot for sequence in finished], dtype=np.int64)
        padded = self._rows_for(len(rows)) if self.deterministic else len(rows)
        at = np.zeros(padded, dtype=np.int64)
        at[: len(rows)] = last
        all_rows = np.zeros(padded, dtype=np.int64)
        all_rows[: len(rows)] = rows
        logits = self.model.logits(hidden.index_select(0, self._tensor(at)))
        table.decoding[rows] = True
        self._draw(logits, all_rows, np.arange(len(rows)))

    def _compact(self) -> None:
        """Bring the sequences at work to the front, when that saves rows."""
        if not self.busy:
            return
        rows = np.flatnonzero(self.table.decoding)
        size = self._rows_for(len(rows)) if self.deterministic else len(rows) + len(rows) // 8
        if not len(rows) or rows[-1] < size:
            return
        places = iter(np.flatnonzero(~self.table.decoding[:size]))
        for source in rows[rows >= size].tolist():
            target = int(next(places))
            if target in self.resting:
                self._park(self.resting[target])
            sequence = self.occupants[source]
            assert sequence is not None
            self.free.remove(target)
            heapify(self.free)
            self.table.move(source, target)
            self.cache.move(source, target, int(self.table.length[target]))
            self.occupants[target], self.occupants[source], sequence.slot = sequence, None, target
            heappush(self.free, source)

    def _decode(self) -> None:
        table = self.table
        rows = np.flatnonzero(table.decoding)
        n = int(rows[-1]) + 1
        if self.deterministic:
            n = self._rows_for(n)
        at_work = table.decoding[:n]
        positions = np.where(at_work, table.length[:n], 0)
        writes = np.where(at_work, table.length[:n], self.trash)
        logits = self.model.decode(
            self._tensor(table.token[:n]), self._tensor(positions), self._tensor(writes), int(positions.max()) + 1
        )
        table.length[rows] += 1
        self._draw(logits, np.arange(n), rows)

    def _draw(self, logits: torch.Tensor, slots: np.ndarray, used: np.ndarray) -> None:
        """Draw for the rows of `logits`, which belong to `slots`; those at `used` count."""
        table, rows = self.table, slots[used]
        temperature, top_p, top_k = table.temperature[slots], table.top_p[slots], table.top_k[slots]
        at = np.minimum(table.length[slots], self.max_length - 1)
        some_p, some_k = bool((top_p[used] < 1).any()), bool((top_k[used] >= 0).any())
        sampling = RowSampling(
            temperature=self._tensor(temperature),
            uniform=self._tensor(table.uniforms[slots, at]),
            top_p=self._tensor(top_p) if some_p else None,
            top_k=self._tensor(top_k) if some_k else None,
            all_greedy=not temperature[used].any(),
        )
        drawn, logprobs = sample(logits, sampling)
        tokens = drawn.cpu().numpy()[used]
        table.append(rows, tokens, logprobs.cpu().numpy()[used], self.version)
        self.generated_tokens += len(rows)
        full = table.count[rows] >= table.limit[rows]
        flagged = full | self.stops.candidates[table.stops[rows], tokens]
        for i in np.flatnonzero(flagged).tolist():
            row = int(rows[i])
            token_ids = table.tokens[row, : table.count[row]].tolist()
            ended, stop = self.stops.check(int(table.stops[row]), token_ids)
            if ended or full[i]:
                self._finish(row, token_ids, "stop" if ended else "length", stop)

    def _finish(self, row: int, token_ids: list[int], reason: FinishReason, stop: str | None) -> None:
        table, sequence = self.table, self.occupants[row]
        assert sequence is not None
        assert sequence.turn is not None
        n = len(token_ids)
        result = TurnResult(token_ids, table.logprobs[row, :n].tolist(), table.versions[row, :n].tolist(), reason, stop)
        turn, sequence.turn = sequence.turn, None
        sequence.length, sequence.last = int(table.length[row]), token_ids[-1]
        table.decoding[row] = False
        self.busy -= 1
        self.resting[row] = sequence
        turn.done(result)

    # -- slots -------------------------------------------------------------------------------------------------------

    def _park(self, sequence: Stream) -> None:
        """Take the slot from a resting sequence; its keys and values are kept aside, bit for bit."""
        assert sequence.slot is not None
        sequence.saved = self.cache.save(sequence.slot, sequence.length)
        self._vacate(sequence)

    def _vacate(self, sequence: Stream) -> None:
        slot = sequence.slot
        assert slot is not None
        if slot in self.resting:
            del self.resting[slot]
        elif sequence.turn is not None:
            self.busy -= 1
        self.table.decoding[slot] = False
        self.occupants[slot], sequence.slot = None, None
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
