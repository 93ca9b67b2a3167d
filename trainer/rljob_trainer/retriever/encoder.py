"""The interface of encoders, and the choice among them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rljob_api.errors import UserError
from rljob_api.v1alpha1.retriever import EncoderSpec


class Encoder(Protocol):
    """Turns texts into vectors [len(texts), dimension], float32, of length 1: inner product is cosine similarity."""

    dimension: int
    fingerprint: str
    """What an index depends on; an index with another fingerprint is refused."""

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


def load_encoder(spec: EncoderSpec, job_dir: str) -> Encoder:
    """The encoder that the job asks for. Raises UserError when it cannot be loaded."""
    if spec.type == "hashed":
        from rljob_trainer.retriever.hashed import HashedEncoder

        try:
            return HashedEncoder(spec.dimension, spec.max_length)
        except ValueError as error:
            raise UserError(f"spec.retriever.encoder.dimension: {error}") from None
    from rljob_trainer.retriever.e5 import E5Encoder  # loads torch

    return E5Encoder(spec, job_dir)
