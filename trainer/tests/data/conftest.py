"""A word-level tokenizer in Hugging Face's format."""

from pathlib import Path
from typing import Any

import pytest
from rljob_trainer.quickstart.tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Knows ` a` … ` h` and ` mentor`; everything else is <unk>, one per character."""
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, ["mentor"], list("abcdefgh"))
    return AutoTokenizer.from_pretrained(folder)
