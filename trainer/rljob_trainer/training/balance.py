"""Sharing a batch out to ranks so that none waits long for another.

A rank's time grows with the work of its samples, and a step lasts as long as its slowest rank. All functions are pure:
the same lengths give the same shares, whatever process asks.
"""

import heapq
from collections.abc import Sequence
from operator import itemgetter

ATTENTION_SCALE = 24_576
"""Length at which causal attention costs as much as the rest of a transformer block, for a hidden size of 2048 to
4096: per token and layer about 24·h² operations of matrices and 2·h·length of attention, equal at length = 12·h."""

type Items = int | tuple[Items, Items] | None
"""Numbers in a share, as a tree: joining two shares costs nothing."""


def work(length: int) -> float:
    """Cost of a sequence in tokens' worth: its tokens, and its attention, which grows with their square."""
    return length * (1.0 + length / ATTENTION_SCALE)


def partition(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Numbers 0 … len(costs) − 1 in `ranks` shares whose sums of costs are nearly equal; every number is in one share.

    Largest differencing (Karmarkar & Karp 1982): keep a heap of partial partitions, at first one item each, and join
    the two whose largest and smallest sums differ most, the heavy shares of one with the light shares of the other.
    Shares may differ in their number of items. Each is sorted; ties are broken by number. O(n·log n + n·ranks).
    """
    if ranks < 1:
        raise ValueError(f"{ranks} ranks")
    if not costs:
        return [[] for _ in range(ranks)]
    heap: list[tuple[float, int, list[tuple[float, Items]]]] = []
    for number, cost in enumerate(costs):
        if not cost >= 0:
            raise ValueError(f"item {number} has cost {cost}")
        heap.append((-cost, number, [(cost, number), *[(0.0, None)] * (ranks - 1)]))
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, first, heavy), (_, second, light) = heapq.heappop(heap), heapq.heappop(heap)
        joined = [(a + b, _join(x, y)) for (a, x), (b, y) in zip(heavy, reversed(light), strict=True)]
        joined.sort(key=itemgetter(0), reverse=True)
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], min(first, second), joined))
    return sorted((_numbers(items) for _, items in heap[0][2]), key=lambda numbers: numbers or [len(costs)])


def _join(one: Items, other: Items) -> Items:
    return other if one is None else one if other is None else (one, other)


def _numbers(items: Items) -> list[int]:
    found, left = [], [items]
    while left:
        part = left.pop()
        if isinstance(part, tuple):
            left += part
        elif part is not None:
            found.append(part)
    return sorted(found)


def in_turn(count: int, ranks: int) -> list[list[int]]:
    """Every `ranks`-th number to each rank: shares differ by one item at most."""
    return [list(range(rank, count, ranks)) for rank in range(ranks)]


def shares(lengths: Sequence[int], ranks: int, *, balanced: bool) -> list[list[int]]:
    """Which items each rank gets, all of them once: by their work, or in turn."""
    return partition([work(length) for length in lengths], ranks) if balanced else in_turn(len(lengths), ranks)


def restore[T](parts: Sequence[Sequence[T]], numbers: Sequence[Sequence[int]]) -> list[T]:
    """What the ranks said of their items (`numbers`), in the order of the items. Raises ValueError when a rank said
    too much or too little."""
    placed = {
        number: value for part, own in zip(parts, numbers, strict=True) for number, value in zip(own, part, strict=True)
    }
    return [placed[number] for number in range(len(placed))]
