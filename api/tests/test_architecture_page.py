"""docs/contributing/architecture.md: its layers are those of the contracts, its files and tests are there."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/contributing/architecture.md").read_text(encoding="utf-8")
HOMES = {
    "One sample's way": "trainer/rljob_trainer",
    "One RLJob's way": "operator/rljob_operator",
    "To add something": "trainer/rljob_trainer",
}


def contracts() -> Iterator[tuple[str, list[str]]]:
    """Package and rows of each contract that orders rooms."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    for contract in linter["contracts"]:
        if contract["type"] == "layers" and "containers" in contract:
            yield contract["containers"][0], contract["layers"]


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("layers", [layers for _, layers in contracts()], ids=[package for package, _ in contracts()])
def test_the_picture_has_the_rows_of_the_contracts(layers: list[str]) -> None:
    lines = section("Packages and rooms").splitlines()
    rows = [next(n for n, line in enumerate(lines) if re.search(rf"│ {re.escape(layer)} +│", line)) for layer in layers]
    assert rows == list(range(rows[0], rows[0] + len(layers)))


@pytest.mark.parametrize("title", list(HOMES))
def test_the_files_that_it_names_are_there(title: str) -> None:
    named = re.findall(r"`([\w./]+\.py)(?:::(\w+))?`", section(title))
    assert named
    for path, test in named:
        places = [ROOT / base / path for base in ("", "api", "api/rljob_api/catalogue", HOMES[title])]
        found = [place for place in places if place.exists()] or list((ROOT / "trainer").rglob(path))
        assert found, path
        assert not test or f"def {test}(" in found[0].read_text(encoding="utf-8"), test
