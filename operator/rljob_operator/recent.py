"""What a pure function gave lately, to be taken instead of worked out again."""

from collections.abc import Callable, Hashable


class Recent[K: Hashable, V]:
    """The values of the keys that were asked for last."""

    def __init__(self, size: int) -> None:
        """At most `size` values are kept."""
        self._size = size
        self._values: dict[K, V] = {}

    def get(self, key: K, work_out: Callable[[], V]) -> V:
        """The value of `key`, worked out if it is not there. It is shared: nobody may change it."""
        value = self._values.pop(key) if key in self._values else work_out()
        self._values[key] = value  # at the end: the order is that of use
        if len(self._values) > self._size:
            del self._values[next(iter(self._values))]
        return value
