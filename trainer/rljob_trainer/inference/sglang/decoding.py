"""Responses that end together become text together.

The samples of a rollout tend to end in the same few steps of the engine. One by one, their texts are most of what
is left to do then, while the GPU waits; a batch is decoded by all cores (one with `TOKENIZERS_PARALLELISM=false`).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rljob.types import Tokenizer

Rows = Sequence[Sequence[int]]


class Decoder:
    """Decodes for many tasks of one event loop; special tokens are kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = batch_decode(tokenizer)
        self._waiting: list[tuple[Sequence[int], asyncio.Future[str]]] = []

    async def text(self, ids: Sequence[int]) -> str:
        """The text of `ids`, with that of all others that are asked for in the same turn of the event loop."""
        if not ids:
            return ""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)  # comes after every task that is ready now
        future: asyncio.Future[str] = loop.create_future()
        self._waiting.append((ids, future))
        return await future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            texts = self._decode([ids for ids, _ in waiting])
        except Exception as error:  # noqa: BLE001 - those who wait raise it
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), text in zip(waiting, texts, strict=True):
            if not future.done():  # its task may have been cancelled
                future.set_result(text)


def batch_decode(tokenizer: Tokenizer) -> Callable[[Rows], list[str]]:
    """`tokenizer.decode` for many rows; by the `tokenizers` library at once where that is all transformers would do."""
    from transformers import PreTrainedTokenizerFast

    plain = isinstance(tokenizer, PreTrainedTokenizerFast) and (
        type(tokenizer)._decode is PreTrainedTokenizerFast._decode and not tokenizer.clean_up_tokenization_spaces
    )
    if plain:
        backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        return lambda rows: list(backend.decode_batch([list(row) for row in rows], skip_special_tokens=False))

    def one_by_one(rows: Rows) -> list[str]:
        # As arrays: of a list transformers looks at each element, longer than it decodes.
        arrays: Any = [np.asarray(row) for row in rows]
        return [tokenizer.decode(row, skip_special_tokens=False) for row in arrays]

    return one_by_one
