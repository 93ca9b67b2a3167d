"""The order of answers: exact scores, ties broken by a hash of the id, so that no batch mate or file order decides."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def tie_key(identifier: str) -> bytes:
    """Where a document stands among equals: by the hash of its id, not by its place in the corpus."""
    return hashlib.blake2b(identifier.encode(), digest_size=8).digest()


def exact_scores(query: NDArray[np.float32], passages: NDArray[np.float32]) -> NDArray[np.float64]:
    """Inner products [n] of one query [d] with passages [n, d], summed in float64 in an order of their own.

    A matrix product's last bits depend on the batch's size; these do not.
    """
    products: NDArray[np.float64] = passages.astype(np.float64) * query.astype(np.float64)
    scores: NDArray[np.float64] = products.sum(axis=1)
    return scores


def order(scores: NDArray[np.float64], identifiers: Sequence[str]) -> list[int]:
    """Positions from best to worst."""
    return sorted(range(len(identifiers)), key=lambda i: (-scores[i], tie_key(identifiers[i])))
