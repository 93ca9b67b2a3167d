"""Words and word pairs hashed into a vector: a deterministic encoder without weights, for tests and the quickstart.

Every word and every pair of neighbouring words stands for a pseudo-random ±1 vector (random indexing, Kanerva et al.
2000); a text is their weighted sum, normalised. Texts that share words have a high inner product, whatever their
length. The numbers do not depend on batch, threads or CPU: sums are exact in float32.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_POSSESSIVE = re.compile(r"['’]s\b")
NAME_WEIGHT = 2.0
"""Capitalised words and numbers count double: names tell passages apart better than common words."""
BODY_WEIGHT = 0.25
"""What a passage says weighs less than its title, so that a name finds the passages about it first."""


class HashedEncoder:
    """Encoder of `dimension` components. `e5`'s prefixes do not apply: a constant word would only blur the vectors."""

    def __init__(self, dimension: int, max_length: int = 256) -> None:
        if dimension % 8:
            raise ValueError(f"the hashed encoder's dimension must be a multiple of 8, not {dimension}")
        self.dimension = dimension
        self.max_length = max_length
        self.fingerprint = f"hashed-1:dimension={dimension}:maxLength={max_length}"

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), dimension], each of length 1 (0 for a text without words)."""
        return self._encode([[(text, 1.0)] for text in texts])

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As queries, but the first line (the title) weighs more than the rest."""
        parts = []
        for text in texts:
            title, _, body = text.partition("\n")
            parts.append([(title, 1.0), (body, BODY_WEIGHT)])
        return self._encode(parts)

    def _encode(self, texts: Sequence[Sequence[tuple[str, float]]]) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, parts in enumerate(texts):
            for text, weight in parts:
                self._add(vectors[row], text, weight)
            length = np.sqrt(np.square(vectors[row], dtype=np.float64).sum())
            if length > 0.0:
                vectors[row] /= length
        return vectors

    def _add(self, vector: NDArray[np.float32], text: str, weight: float) -> None:
        words = _WORD.findall(_POSSESSIVE.sub("", text))[: self.max_length]
        if not words:
            return
        weights = [NAME_WEIGHT if word[0].isupper() or word[0].isdigit() else 1.0 for word in words]
        words = [word.lower() for word in words]
        features = [*words, *(f"{left} {right}" for left, right in pairwise(words))]
        weights += [(left + right) / 2 for left, right in pairwise(weights)]
        for feature, value in zip(features, weights, strict=True):
            vector += np.float32(value * weight) * _signs(feature, self.dimension)


@lru_cache(maxsize=1 << 15)
def _signs(feature: str, dimension: int) -> NDArray[np.float32]:
    """The feature's vector of ±1."""
    bits = np.frombuffer(hashlib.shake_128(feature.encode()).digest(dimension // 8), dtype=np.uint8)
    return np.unpackbits(bits).astype(np.float32) * 2 - 1
