"""Keys and values in pages, shared by all sequences."""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import torch
from rljob.types import EngineError

from rljob_trainer.inference.torch_engine.architecture import Architecture
from rljob_trainer.inference.torch_engine.attention import value_width

Saved = tuple[torch.Tensor, torch.Tensor]


class PagedCache:
    """Pages of `page` tokens, float32. Per layer, keys are [pages, kv heads, head_dim, page], values [pages, kv heads,
    page, value_width(head_dim)], column head_dim 1: each as `attention.attend` reads it. Page 0 takes the writes of
    padding.

    Memory is only touched when a page is first taken.
    """

    def __init__(self, architecture: Architecture, pages: int, page: int, device: torch.device) -> None:
        self.page, self.heads, self.width = page, architecture.num_kv_heads, architecture.head_dim
        layers = architecture.num_layers
        self._keys = torch.zeros((layers, pages + 1, self.heads, self.width, page), device=device)
        columns = value_width(self.width)
        self._values = torch.zeros((layers, pages + 1, self.heads, page, columns), device=device)
        self.keys, self.values = list(self._keys), list(self._values)
        self._key_items = [layer.view(-1) for layer in self.keys]
        self._value_rows = [layer.view(-1, columns)[:, : self.width] for layer in self.values]
        self._key_offsets = torch.arange(self.heads * self.width, device=device) * page
        self._value_offsets = torch.arange(self.heads, device=device) * page
        self._free = list(range(1, pages + 1))
        self._ready = -1
        self._prepare(0)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """A free page, the lowest: pages in use stay together."""
        if not self._free:
            raise EngineError("the engine has no free page: this is a mistake in its accounts")
        page = heappop(self._free)
        if page > self._ready:
            self._prepare(page)
        return page

    def give_back(self, pages: Sequence[int]) -> None:
        """Pages that are not used any more."""
        if len(pages) > 16:
            self._free.extend(pages)
            heapify(self._free)
        else:
            for page in pages:
                heappush(self._free, page)

    def _prepare(self, page: int) -> None:
        """Set the column of ones up to `page`."""
        self._values[:, self._ready + 1 : page + 1, ..., self.width] = 1
        self._ready = page

    def places(self, pages: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where tokens at `offsets` [n] of `pages` [n] are written: for `write`, the same in all layers."""
        keys = (pages * (self.heads * self.width * self.page) + offsets)[:, None] + self._key_offsets
        values = (pages * (self.heads * self.page) + offsets)[:, None] + self._value_offsets
        return keys, values.view(-1)

    def write(
        self, layer: int, places: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """keys, values [n, kv heads · head_dim]."""
        self._key_items[layer].put_(places[0], keys)
        self._value_rows[layer].index_copy_(0, places[1], values.reshape(-1, self.width))

    def save(self, pages: Sequence[int]) -> Saved:
        """A copy of some pages."""
        index = torch.tensor(pages, device=self._keys.device)
        return self._keys.index_select(1, index), self._values.index_select(1, index)

    def restore(self, pages: Sequence[int], saved: Saved) -> None:
        """Put a copy back, into other pages."""
        index = torch.tensor(pages, device=self._keys.device)
        self._keys.index_copy_(1, index, saved[0])
        self._values.index_copy_(1, index, saved[1])
