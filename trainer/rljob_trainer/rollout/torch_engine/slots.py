"""The state of the engine's slots as arrays, one row each, so that a step is a few array operations."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rljob_trainer.rollout.types import SamplingParams


class SlotTable:
    """Rows of per-slot state. `width` is the longest sequence in tokens."""

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        self.decoding = np.zeros(rows, dtype=bool)
        self.length = np.zeros(rows, dtype=np.int64)
        """Tokens whose keys and values are in the cache."""
        self.token = np.zeros(rows, dtype=np.int64)
        """The token drawn last, not in the cache yet."""
        self.count = np.zeros(rows, dtype=np.int64)
        """Tokens generated in this turn."""
        self.limit = np.zeros(rows, dtype=np.int64)
        """Tokens at which this turn ends."""
        self.stops = np.zeros(rows, dtype=np.int64)
        """Number of the stop conditions."""
        self.temperature = np.zeros(rows, dtype=np.float32)
        self.top_p = np.ones(rows, dtype=np.float64)
        self.top_k = np.full(rows, -1, dtype=np.int64)
        self.uniforms = np.zeros((rows, width), dtype=np.float64)
        """The draw of each token position."""
        self.tokens = np.zeros((rows, width), dtype=np.int64)
        self.logprobs = np.zeros((rows, width), dtype=np.float32)
        self.versions = np.zeros((rows, width), dtype=np.int64)

    def begin(self, row: int, length: int, limit: int, stops: int, sampling: SamplingParams, draws: np.ndarray) -> None:
        """A turn starts in `row`, whose cache holds `length` tokens."""
        self.decoding[row] = False
        self.length[row], self.count[row], self.limit[row], self.stops[row] = length, 0, limit, stops
        self.temperature[row], self.top_p[row], self.top_k[row] = sampling.temperature, sampling.top_p, sampling.top_k
        self.uniforms[row] = draws

    def append(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, version: int) -> None:
        """One drawn token for each of `rows`."""
        count = self.count[rows]
        self.tokens[rows, count] = tokens
        self.logprobs[rows, count] = logprobs
        self.versions[rows, count] = version
        self.count[rows] = count + 1
        self.token[rows] = tokens

    def move(self, source: int, target: int) -> None:
        """Copy a row that is generating; the source becomes free."""
        scalars: tuple[NDArray[Any], ...] = (
            self.length, self.token, self.count, self.limit, self.stops, self.temperature, self.top_p, self.top_k
        )  # fmt: skip
        for column in scalars:
            column[target] = column[source]
        self.decoding[target] = self.decoding[source]
        self.uniforms[target] = self.uniforms[source]
        done = self.count[source]
        generated: tuple[NDArray[Any], ...] = (self.tokens, self.logprobs, self.versions)
        for values in generated:
            values[target, :done] = values[source, :done]
        self.decoding[source] = False
