"""The state of the engine's slots as arrays, one row each, so that a step is a few array operations."""

from collections.abc import Sequence

import numpy as np
from rljob.types import SamplingParams


class SlotTable:
    """Rows of per-slot state. `width` is the longest sequence in tokens, `pages` in pages."""

    def __init__(self, rows: int, width: int, pages: int) -> None:
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
        self.pages = np.zeros((rows, pages), dtype=np.int64)
        """Pages of the cache, of which each row holds the first `held`."""
        self.held = np.zeros(rows, dtype=np.int64)

    def begin(self, row: int, length: int, limit: int, stops: int, sampling: SamplingParams, draws: np.ndarray) -> None:
        """A turn starts in `row`, whose cache holds `length` tokens."""
        self.decoding[row] = False
        self.length[row], self.count[row], self.limit[row], self.stops[row] = length, 0, limit, stops
        self.temperature[row], self.top_p[row], self.top_k[row] = sampling.temperature, sampling.top_p, sampling.top_k
        self.uniforms[row] = draws
        self.held[row] = 0

    def go_on(self, row: int, tokens: Sequence[int], logprobs: Sequence[float], versions: Sequence[int]) -> None:
        """The turn in `row` began earlier, with these tokens."""
        count = len(tokens)
        self.tokens[row, :count], self.logprobs[row, :count], self.versions[row, :count] = tokens, logprobs, versions
        self.count[row] = count

    def append(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, version: int) -> None:
        """One drawn token for each of `rows`."""
        count = self.count[rows]
        self.tokens[rows, count] = tokens
        self.logprobs[rows, count] = logprobs
        self.versions[rows, count] = version
        self.count[rows] = count + 1
        self.token[rows] = tokens

    def hold(self, row: int, page: int) -> None:
        """One more page for `row`."""
        self.pages[row, self.held[row]] = page
        self.held[row] += 1
