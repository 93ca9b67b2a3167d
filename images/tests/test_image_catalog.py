"""What an image's content key depends on, and that Containerfiles and catalogue agree."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from images.catalog import DEFAULT, IMAGES, ROOT, content_key


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what images are made of."""
    for place in ("images", "api", "cli", "operator", "trainer"):
        shutil.copytree(ROOT / place, tmp_path / place, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    for name in ("pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def keys(root: Path) -> dict[str, str]:
    """Content key of each image."""
    return {name: content_key(image, {"BASE_IMAGE": "base"}, root) for name, image in IMAGES.items()}


def append(path: Path) -> None:
    """Change a file."""
    path.write_text(path.read_text() + "\n# changed\n")


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        (lambda root: append(root / "operator/rljob_operator/main.py"), {"operator"}),
        (lambda root: append(root / "trainer/rljob_trainer/driver.py"), {"retriever", "trainer", "trainer-cpu"}),
        (lambda root: append(root / "api/rljob_api/v1alpha1/job.py"), set(IMAGES)),
        (lambda root: append(root / "uv.lock"), set(IMAGES)),
        (lambda root: append(root / "images/retriever.Containerfile"), {"retriever"}),
        (lambda root: append(root / "images/build.py"), set()),
        (lambda root: (root / "trainer/rljob_trainer/__pycache__").mkdir(), set()),
        (lambda root: (root / "images/scripts/compile.sh").chmod(0o644), set(IMAGES)),
    ],
)
def test_a_change_rebuilds_the_images_that_hold_it(
    checkout: Path, change: Callable[[Path], None], rebuilt: set[str]
) -> None:
    before = keys(checkout)
    change(checkout)
    after = keys(checkout)
    assert {name for name in IMAGES if before[name] != after[name]} == rebuilt


def test_build_arguments_count() -> None:
    image = IMAGES["trainer-cpu"]
    assert content_key(image, {"TORCH_INDEX": "a"}) != content_key(image, {"TORCH_INDEX": "b"})


@pytest.mark.parametrize("name", IMAGES)
def test_a_containerfile_copies_what_the_catalogue_says(name: str) -> None:
    text = IMAGES[name].containerfile.read_text()
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        for source in line.split()
        if source not in ("pyproject.toml", "uv.lock") and not source.startswith("images/scripts")
    }
    assert copied == set(IMAGES[name].sources)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_nobody_and_says_what_it_is(name: str) -> None:
    text = IMAGES[name].containerfile.read_text()
    final = text[text.rindex("\nFROM ") :]
    assert "USER 65532:65532" in final
    assert 'rljob.io/content-key="${CONTENT_KEY}"' in final
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in final


def test_the_images_for_cpus_share_their_first_stages() -> None:
    """Layers are shared only as long as the instructions are the same to the letter."""
    heads = set()
    for name in DEFAULT:
        text = IMAGES[name].containerfile.read_text()
        heads.add(text[text.index("ARG BASE_IMAGE") : text.index("# Only what this image needs")])
    assert len(heads) == 1
