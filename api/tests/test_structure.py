"""The structure of the five packages, read from their source: no circle of imports, those in functions and under
`TYPE_CHECKING` included. Nothing of theirs is imported here."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "rljob_api": "api",
    "rljob": "api",
    "rljob_cli": "cli",
    "rljob_operator": "operator",
    "rljob_trainer": "trainer",
}

Graph = Mapping[str, set[str]]


def sources() -> dict[str, Path]:
    """Files of the packages by the name of their module."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, tree: ast.AST, *, package: bool, modules: Iterable[str]) -> set[str]:
    """Which of `modules` the source of `module` names in an import, wherever in the file. `package`: it is an
    `__init__.py`. A package that is passed on the way (`a` for `import a.b`) is not counted: `a.b` is meant."""
    known, names = set(modules), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            start = parts[: len(parts) - node.level + package] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {inner if (inner := f"{base}.{alias.name}") in known else base for alias in node.names}
    return (names & known) - {module}


def circles(graph: Graph) -> Iterator[tuple[str, ...]]:
    """The strongly connected components of more than one module, each sorted (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> Iterator[tuple[str, ...]]:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                yield from visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            at = stack.index(module)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                yield tuple(sorted(component))

    for module in sorted(graph):
        if module not in number:
            yield from visit(module)


@pytest.fixture(scope="module")
def graph() -> Graph:
    files = sources()
    return {
        module: imported(
            module,
            ast.parse(path.read_text(encoding="utf-8")),
            package=path.name == "__init__.py",
            modules=files,
        )
        for module, path in files.items()
    }


def test_no_circle_of_imports(graph: Graph) -> None:
    assert list(circles(graph)) == []


def test_every_package_is_looked_at(graph: Graph) -> None:
    for package in PACKAGES:
        assert package in graph
    assert "rljob_api.v1alpha1.job" in graph["rljob_trainer.driver"] | graph["rljob_trainer.rollout.service"]
    assert len(graph) > 200


def test_circles_are_found_wherever_the_import_stands() -> None:
    source = {
        "a": "import b",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from c import x",
        "c": "def f():\n    import a",
        "d": "import a",
        "e": "import d, f.g",
        "f": "",
        "f.g": "from f.h import x",
        "f.h": "from .g import y",
    }
    packages = {"f"}
    graph = {
        module: imported(module, ast.parse(text), package=module in packages, modules=source)
        for module, text in source.items()
    }
    assert graph["f.h"] == {"f.g"}
    assert graph["e"] == {"d", "f.g"}
    assert set(circles(graph)) == {("a", "b", "c"), ("f.g", "f.h")}
