"""Which engine makes which sample: the least loaded one, and all samples of a prompt the same one.

Samples of a group share their prompt, so that one engine computes it once and its prefix cache gives it to the others;
the turns of a sample stay on one engine for the same reason.
"""

from collections.abc import Hashable, Iterable, Sequence


def by_group[G: Hashable](groups: Sequence[G]) -> list[list[int]]:
    """Numbers of the samples of each group, groups in the order of their first sample."""
    numbers: dict[G, list[int]] = {}
    for number, group in enumerate(groups):
        numbers.setdefault(group, []).append(number)
    return list(numbers.values())


def route(sizes: Iterable[int], loads: Sequence[int]) -> list[int]:
    """The engine of each of the groups, which have `sizes` samples: in their order, each to the engine with the least
    to do (of equals the first), `loads` being what the engines have under way already."""
    if not loads:
        raise ValueError("no engine")
    now = list(loads)
    chosen = []
    for size in sizes:
        engine = now.index(min(now))
        now[engine] += size
        chosen.append(engine)
    return chosen
