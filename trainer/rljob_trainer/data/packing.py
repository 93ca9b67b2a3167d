"""Packing: which documents share a sequence. Pure, on lengths alone."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the documents in each sequence of at most `capacity` tokens; every document once, whole.

    Best fit decreasing: the longest document first, each into the sequence that it leaves the least room in, a new
    one where none has room. At most 11/9 of the fewest possible sequences, plus one (Johnson 1973; for language
    models: Ding et al., "Fewer Truncations Improve Language Modeling", arXiv:2404.10830). The result depends on the
    arguments alone: equal lengths keep their order. O(n log n) for n documents.

    Raises ValueError for a document that is empty or longer than `capacity`.
    """
    for number, length in enumerate(lengths):
        if not 0 < length <= capacity:
            raise ValueError(f"document {number} has {length} tokens; a sequence has room for 1 to {capacity}")
    sequences: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens of room → the sequences that have just so many
    rooms: list[int] = []  # the keys, ascending
    for document in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[document]
        at = bisect_left(rooms, length)
        if at == len(rooms):
            room, sequence = capacity, len(sequences)
            sequences.append([])
        else:
            room = rooms[at]
            sequence = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        sequences[sequence].append(document)
        left = room - length
        if left:
            if left not in with_room:
                insort(rooms, left)
                with_room[left] = []
            with_room[left].append(sequence)
    return sequences
