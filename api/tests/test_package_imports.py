"""Each package imports with its own extra alone, and a folder called `operator` stays no package."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "transformers", "numpy", "faiss")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import rljob_api", (*HEAVY, "kubernetes", "kopf", "typer")),
        ("import rljob_api.rules.checks, rljob_api.manifest.load", (*HEAVY, "kubernetes", "kopf")),
        ("import rljob_operator.controller.plan", HEAVY),
        ("import rljob_trainer", ("kopf", "torch", "ray")),
        ("import rljob_trainer.local.run", ("kopf", "torch", "ray")),
        ("import rljob_cli.app", (*HEAVY, "kubernetes", "kopf")),
    ],
)
def test_importing_stays_light(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nprint(sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_folder_operator_does_not_hide_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "trainer" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import operator, functools; print(operator.add(1, 2))"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "3"


@pytest.mark.slow
def test_tests_of_operator_api_and_cli_are_collected_without_torch() -> None:
    """`make test-operator` runs them in an environment without it."""
    code = (
        "import sys, pytest\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {HEAVY!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "sys.exit(pytest.main(['-q', '--collect-only', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    folders = ("api/tests", "operator/tests", "cli/tests", "images/tests", "charts/tests", "e2e")
    command = [sys.executable, "-c", code, *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "operator/tests/test_lifecycle.py::" in done.stdout
