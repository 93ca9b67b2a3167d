"""E5 (Wang et al. 2022, arXiv:2212.03533): a transformers encoder, prefixes, mean pooling, normalised vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rljob_api.errors import UserError
from rljob_api.v1alpha1.retriever import EncoderSpec

_CHUNK = 32
"""Texts per forward pass; sorted by length, so that little of it is padding."""


class E5Encoder:
    """An encoder from the Hub or a folder, in evaluation mode, float32 on CPU and float16 on GPU."""

    def __init__(self, spec: EncoderSpec, job_dir: str) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError(
                f"spec.retriever.encoder.type: e5 needs the package {error.name}, which is not installed here",
                hint="install the extra: rljob[encoder]; or use a retriever image that has it",
            ) from None
        if spec.device == "cuda" and not torch.cuda.is_available():
            raise UserError("spec.retriever.encoder.device: cuda, but no GPU is visible; give the pod one or use cpu")
        transformers.utils.logging.disable_progress_bar()
        local = Path(job_dir, spec.path)
        source = str(local) if local.is_dir() else spec.path
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, revision=spec.revision)
            model: Any = transformers.AutoModel.from_pretrained(source, revision=spec.revision)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"spec.retriever.encoder.path: {spec.path} cannot be loaded: {reason}") from error
        self._torch: Any = torch
        self._device = spec.device
        self._model: Any = model.to(spec.device, torch.float16 if spec.device == "cuda" else torch.float32).eval()
        self._max_length = spec.max_length
        self._query_prefix = spec.query_prefix
        self._passage_prefix = spec.passage_prefix
        self.dimension = int(model.config.hidden_size)
        # Not the path: the same weights may lie elsewhere. Other weights are told by the index's probe vector.
        self.fingerprint = f"e5-1:dimension={self.dimension}:maxLength={spec.max_length}:prefix={spec.passage_prefix!r}"

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), dimension]."""
        return self._encode([self._query_prefix + text for text in texts])

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), dimension]; wiki-18's title quotes are part of the text, as in Search-R1's index."""
        return self._encode([self._passage_prefix + text for text in texts])

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        torch = self._torch
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        with torch.inference_mode():
            for start in range(0, len(texts), _CHUNK):
                rows = by_length[start : start + _CHUNK]
                batch = self._tokenizer(
                    [texts[row] for row in rows],
                    max_length=self._max_length,
                    padding=True,
                    truncation=True,
                    return_tensors="pt",
                ).to(self._device)
                hidden = self._model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1)
                mean = (hidden * mask).sum(dim=1).float() / mask.sum(dim=1)
                vectors[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return vectors
