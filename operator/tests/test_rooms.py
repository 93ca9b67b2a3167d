"""The operator's modules import one another in no circle."""

import ast
from pathlib import Path

import rljob_operator

PACKAGE = Path(rljob_operator.__file__).parent


def imports(path: Path) -> set[str]:
    """Modules of the package that a module imports anywhere: in functions and under TYPE_CHECKING as well."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Circles among modules, each once from the module at which it is met."""
    found, done = list[list[str]](), set[str]()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(graph[module]):
                visit(other, [*way, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_there_is_no_import_circle():
    paths = {
        ".".join(("rljob_operator", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {module: {other for other in imports(path) if other in paths} for module, path in paths.items()}
    assert sum(map(len, graph.values())) > 100
    assert cycles(graph) == []


def test_a_circle_would_be_seen():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
