"""What documents and workflows refer to exists: make targets, files, links, decisions."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))


PAGES = sorted(
    page
    for pattern in (
        "*.md",
        ".github/**/*.md",
        *(f"{path}/**/*.md" for path in ("docs", "e2e", "examples", "benchmarks")),
    )
    for page in ROOT.glob(pattern)
)


def name(path: Path) -> str:
    """A path as pytest shows it."""
    return str(path.relative_to(ROOT))


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z0-9][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(page: str) -> Iterator[str]:
    """Code of a page: fenced blocks line by line without comments, and what stands between backticks."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        yield from (line.split("#")[0] for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL))


def called(command: str) -> list[str]:
    """Targets that a command line gives to make."""
    return re.findall(r"(?:^|[;&|]\s*|[A-Z_]+=\S+ )make ([a-z][a-z0-9-]*)", command.strip())


@pytest.mark.parametrize("page", [page for page in PAGES if "make " in page.read_text(encoding="utf-8")], ids=name)
def test_targets_that_a_page_names_exist(page: Path) -> None:
    found = {target for command in commands(page.read_text(encoding="utf-8")) for target in called(command)}
    assert found <= targets()


def test_the_search_for_targets_finds_them() -> None:
    found = [called(command) for command in commands("```\nmake one && make two  # make three\n```\n`A=b make four`")]
    assert found == [["one", "two"], ["four"]]


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", link) or link == "NNNN-title.md":
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_test_files_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(
        r"\b((?:trainer|operator|e2e|images|charts)/[\w/]*test_\w+\.py)", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / path).exists(), path


def workflow(path: Path) -> dict[str, Any]:
    """A workflow; YAML 1.1 reads its key `on` as true."""
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["on"] = content.pop(True)
    return content


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_a_workflow_may_read_alone_has_limits_and_pins_its_actions(path: Path) -> None:
    content = workflow(path)
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["cancel-in-progress"] is True
    for job in content["jobs"].values():
        assert job["timeout-minutes"]
        assert "ubuntu-latest" not in job["runs-on"], "moves to another system by itself"
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"(actions|astral-sh)/[\w-]+@v\d+\.\d+\.\d+", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_a_workflow_runs_targets_and_files_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    called_targets = set(re.findall(r"(?:run|command): make ([a-z0-9-]+)", text))
    assert called_targets
    assert called_targets <= targets()
    for files in re.findall(r"hashFiles\(([^)]*)\)", text):
        for file in re.findall(r"'([^']+)'", files):
            assert (ROOT / file).is_file(), "a key that hashes nothing never changes"
    assert not re.search(r"\bsecrets\.", text), "a pull request from a fork runs without them"


def test_every_push_and_pull_request_is_tested_and_the_night_has_the_whole() -> None:
    fast, nightly = workflow(ROOT / ".github/workflows/test.yml"), workflow(ROOT / ".github/workflows/nightly.yml")
    assert fast["on"] == {"push": {"branches": ["**"]}, "pull_request": None}
    assert set(nightly["on"]) == {"schedule", "workflow_dispatch"}
    runs = [entry["command"] for entry in nightly["jobs"]["whole"]["strategy"]["matrix"]["include"]]
    assert runs == ["make test", "make test-nightly"]


@pytest.mark.parametrize("path", FORMS, ids=name)
def test_an_issue_form_is_one_that_github_shows(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    questions = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in questions}) == len(questions) > 0
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"].get("value") or part["attributes"]["label"]
        assert part["type"] != "dropdown" or part["attributes"]["options"]


def test_hooks_run_programs_that_exist_and_heed_the_lock() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {"ruff-check", "ruff-format", "mypy", "generated"} <= {hook["id"] for hook in hooks}
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/") or (ROOT / program).is_file(), program


@pytest.mark.parametrize(
    ("message", "accepted"),
    [
        ("Refuse a negative size\n", True),
        ("ä" * 72 + "\n\nWhy.\n", True),
        ("a" * 73 + "\n", False),
        ("Refuse a negative size\nand more\n", False),
        ("Refuse a negative size\n# a comment of git's\n", True),
    ],
)
def test_the_subject_of_a_commit_is_short(message: str, accepted: bool, tmp_path: Path) -> None:
    file = tmp_path / "COMMIT_EDITMSG"
    file.write_text(message, encoding="utf-8")
    done = subprocess.run(
        [ROOT / "scripts/check_subject.sh", file], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode == 0) == accepted, done.stderr
    assert accepted or done.stderr.startswith("error: ")


def test_decisions_are_numbered_dated_and_listed_with_their_status() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    assert [path.name[:4] for path in DECISIONS] == [f"{number:04d}" for number in range(1, len(DECISIONS) + 1)]
    assert [path.name for path in (ROOT / "docs/decisions").iterdir() if path not in DECISIONS] == ["README.md"]
    for path in DECISIONS:
        _, header, text = path.read_text(encoding="utf-8").split("---\n", 2)
        status = re.search(r"^status: (.+)$", header, re.MULTILINE)
        date = re.search(r"^date: (\d{4}-\d{2}-\d{2})$", header, re.MULTILINE)
        assert status, path.name
        assert date, path.name
        assert re.fullmatch(
            r"proposed|accepted|rejected|deprecated|superseded by \[\d{4}\]\(\d{4}-[\w-]+\.md\)", status[1]
        )
        title = re.match(r"# (.+)\n", text)
        assert title, path.name
        assert f"| [{path.name[:4]}]({path.name}) | {title[1]} | {date[1]} | {status[1]} |" in index


def test_the_changelog_is_of_the_usual_form_and_names_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", version) for version in versions[1:])
    usual = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= usual
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    current = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert current
    assert f"## [{current[1]}]" in text
