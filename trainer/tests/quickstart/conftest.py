"""A small world, made once."""

from pathlib import Path

import pytest
from rljob_trainer.quickstart.world import prepare

SMALL = {
    "seed": 3,
    "entities": 400,
    "heldOutEntities": 100,
    "syllables": 40,
    "trainQuestions": 300,
    "heldOutQuestions": 120,
    "demonstrations": 400,
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `world` of a prepared job directory."""
    directory = tmp_path_factory.mktemp("job")
    prepare(directory, **SMALL)  # type: ignore[arg-type]
    return directory / "world"
