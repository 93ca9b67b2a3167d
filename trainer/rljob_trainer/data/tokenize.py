"""Files of demonstrations as token ids: rendered, tokenised and masked block by block, in several processes."""

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import SftDataset

from rljob_trainer.data.chat import ChatTemplate
from rljob_trainer.data.demonstrations import COLUMNS, WHERE, segments_of
from rljob_trainer.data.encode import Encoded, Encoder, StraddlingTokenError, backend_of
from rljob_trainer.data.rows import Block, read_blocks

PROCESSES_MAX = 16
PARALLEL_BYTES = 64 << 20
"""Smaller files are done in this process: another one takes seconds to start."""
_BLOCK_SECONDS = 600.0
_AHEAD = 2
"""Blocks under way per process: enough to keep it busy, few enough to fit into memory."""

Progress = Callable[[int, int], None]
"""Called with bytes done and all bytes."""


@dataclass(frozen=True)
class Recipe:
    """All that decides which ids a row becomes; it travels to other processes and names the cache."""

    form: str
    template: ChatTemplate | None
    backend: str
    """The content of `tokenizer.json`."""
    end: str
    """Text of the end-of-sequence token, which closes a completion in plain text."""

    @classmethod
    def of(cls, dataset: SftDataset, tokenizer: Any) -> "Recipe":
        """For a transformers tokenizer. Raises UserError when it is none that can be used."""
        template = None if dataset.format == "segments" else ChatTemplate.of(tokenizer)
        return cls(dataset.format, template, backend_of(tokenizer, "spec.model"), tokenizer.eos_token or "")


def tokenize_files(
    recipe: Recipe,
    paths: list[Path],
    limit: int | None,
    *,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Encoded]:
    """The rows of the files as ids and masks, in order. `processes`: by default as many as help, 1 for small files.

    Raises UserError, naming the row, for one that cannot be used; RuntimeError when a process dies or hangs.
    """
    total = sum(path.stat().st_size for path in paths)
    if processes is None:
        processes = min(PROCESSES_MAX, len(os.sched_getaffinity(0))) if total >= PARALLEL_BYTES else 1
    blocks = read_blocks(paths, limit, f"{WHERE}.path", COLUMNS[recipe.form])
    results = _in_turn(recipe, blocks) if processes == 1 else _in_parallel(recipe, blocks, processes)
    done = 0
    for size, encoded in results:
        done += size
        if progress is not None:
            progress(min(done, total), total)
        yield encoded


def encode_block(recipe: Recipe, encoder: Encoder, block: Block) -> Encoded:
    """The rows of one block."""
    rows = [
        segments_of(row, block.first + at, recipe.form, recipe.template, recipe.end)
        for at, row in enumerate(block.rows(f"{WHERE}.path"))
    ]
    try:
        return encoder.encode(rows)
    except StraddlingTokenError as error:
        raise UserError(
            f"{WHERE}: row {block.first + error.args[0]}: a token lies across the border of the assistant's text, and "
            "this tokenizer cannot take text in pieces",
            hint="let the chat template put a special token or a line break between a turn's header and its text",
        ) from None


def _in_turn(recipe: Recipe, blocks: Iterator[Block]) -> Iterator[tuple[int, Encoded]]:
    encoder = Encoder(recipe.backend)
    for block in blocks:
        yield block.size, encode_block(recipe, encoder, block)


def _in_parallel(recipe: Recipe, blocks: Iterator[Block], processes: int) -> Iterator[tuple[int, Encoded]]:
    """As `_in_turn`. Results come in the order of the blocks."""
    context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads' locks
    under_way: deque[tuple[int, Future[Encoded]]] = deque()
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(recipe,)) as pool:
        try:
            for block in blocks:
                under_way.append((block.size, pool.submit(_work, block)))
                if len(under_way) >= processes * _AHEAD:
                    yield _result(under_way.popleft())
            while under_way:
                yield _result(under_way.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(item: tuple[int, Future[Encoded]]) -> tuple[int, Encoded]:
    size, future = item
    try:
        return size, future.result(timeout=_BLOCK_SECONDS)
    except BrokenProcessPool as error:
        raise RuntimeError("a process that tokenises demonstrations died; most often for lack of memory") from error
    except TimeoutError as error:
        raise RuntimeError(
            f"{size} bytes of demonstrations were not tokenised within {_BLOCK_SECONDS:.0f} s"
        ) from error


_state: tuple[Recipe, Encoder] | None = None
"""In a worker process: what it was started with."""


def _start(recipe: Recipe) -> None:
    global _state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _state = recipe, Encoder(recipe.backend)


def _work(block: Block) -> Encoded:
    if _state is None:
        raise RuntimeError("the worker was not started")
    return encode_block(*_state, block)


class ProgressLine:
    """Progress on standard error: a line that is rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, what: str, *, delay: float = 2.0, every: float = 15.0) -> None:
        """Nothing is shown for what takes less than `delay` seconds."""
        self._what, self._begin = what, time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._every = 0.5 if self._terminal else every
        self._next = self._begin + delay
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next and not (self._shown and done == total):
            return
        self._next = now + self._every
        self._shown = True
        left = (now - self._begin) * (total - done) / max(done, 1)
        text = f"{self._what}: {100 * done // max(total, 1)} % of {total / 1e6:,.0f} MB, about {left:.0f} s left"
        end = "" if self._terminal and done < total else "\n"
        print(f"{chr(13) if self._terminal else ''}{text}   ", end=end, file=sys.stderr, flush=True)
