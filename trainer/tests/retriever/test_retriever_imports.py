"""The retriever's image has neither torch nor the trainer's other libraries."""

import subprocess
import sys

import pytest

MODULES = ["rljob_trainer.retriever.__main__", "rljob_trainer.retriever.build", "rljob_trainer.prepare"]
ABSENT = ["torch", "transformers", "tokenizers", "ray", "pyarrow", "jinja2", "aiohttp", "kopf", "kubernetes"]


@pytest.mark.parametrize("module", MODULES)
def test_it_starts_without_the_trainers_libraries(module: str, tmp_path: object) -> None:
    script = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
import {module}
import rljob_trainer.quickstart.world as world
world.prepare({str(tmp_path)!r}, entities=60, heldOutEntities=20, syllables=12, trainQuestions=20,
              heldOutQuestions=10, demonstrations=10)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
