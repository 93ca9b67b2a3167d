"""What a pure function gave lately, to be taken instead of worked out again."""

import sys
from collections.abc import Callable, Hashable
from typing import Any


class Recent[O: Hashable, K, V]:
    """The latest value of each owner, of those that were asked for last; bounded by bytes."""

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        """Values of at most `limit` bytes together are kept, by the word of `size`."""
        self._limit, self._size_of = limit, size
        self._entries: dict[O, tuple[K, V, int]] = {}
        self.held = 0
        """Bytes of all values that are kept."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, owner: O, key: K, work_out: Callable[[], V]) -> V:
        """The value of `key`, worked out unless it is the one that the owner asked for last; an earlier one of the
        owner's goes. It is shared: nobody may change it."""
        entry = self._entries.get(owner)
        self.forget(owner)
        if entry is None or entry[0] != key:
            value = work_out()
            entry = (key, value, self._size_of(value))
        if entry[2] <= self._limit:
            self._entries[owner] = entry  # at the end: the order is that of use
            self.held += entry[2]
        while self.held > self._limit:
            self.forget(next(iter(self._entries)))
        return entry[1]

    def forget(self, owner: O) -> None:
        """Keep nothing of the owner's."""
        if entry := self._entries.pop(owner, None):
            self.held -= entry[2]


def footprint(value: Any) -> int:
    """Bytes in memory of a value of dicts, lists, tuples and scalars; what it holds several times is counted once."""
    total, seen, left = 0, set[int](), [value]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        total += sys.getsizeof(node)
        if isinstance(node, dict):
            left += node.keys()
            left += node.values()
        elif isinstance(node, list | tuple):
            left += node
    return total
