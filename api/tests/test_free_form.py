"""Free-form parts of a manifest are bounded, each of them, before anything else looks at them."""

from collections.abc import Iterator
from typing import Any

import pytest
from rljob_api.codegen.crd import schema
from rljob_api.manifest.document import MAX_BYTES
from rljob_api.manifest.free_form import FIELD_BYTES, FIELD_DEPTH, FIELD_ELEMENTS, oversized


def maps(node: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Every map in the definition whose keys are not in it."""
    if node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node:
        yield path
    for name, child in node.get("properties", {}).items():
        yield from maps(child, (*path, name))
    if "items" in node:
        yield from maps(node["items"], (*path, 1))


MAPS = list(maps(schema()["properties"]["spec"], ("spec",)))


def manifest(path: tuple[str | int, ...], value: Any) -> Any:
    """A manifest, otherwise empty, with a value at a path: of a list, at the second place."""
    for part in reversed(path):
        value = [{}, value] if isinstance(part, int) else {part: value}
    return value


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def shown(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path)).replace(".1", "[1]")


def test_the_definition_has_the_maps_that_matter() -> None:
    found = {shown(path) for path in MAPS}
    assert {"spec.rollout.engineArgs", "spec.trainer.megatronArgs", "spec.reward.functions[1].args"} <= found
    assert {f"spec.{group}.podTemplatePatch" for group in ("trainer.pod", "trainer.headPod", "rollout.pod")} <= found


@pytest.mark.parametrize("path", MAPS, ids=map(shown, MAPS))
def test_each_map_of_the_definition_has_limits(path: tuple[str | int, ...]) -> None:
    for value in (dict.fromkeys(map(str, range(FIELD_ELEMENTS + 1))), nested(FIELD_DEPTH + 1), {"a": "x" * MAX_BYTES}):
        (problem,) = oversized(manifest(path, value))
        assert problem.path == shown(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [0] * (FIELD_ELEMENTS - 1)}, None),
        ({"a": [0] * FIELD_ELEMENTS}, f"has more than {FIELD_ELEMENTS} entries, in maps and lists at all levels"),
        ({"a": [[0, 0]] * 3400}, f"has more than {FIELD_ELEMENTS} entries, in maps and lists at all levels"),
        (nested(FIELD_DEPTH), None),
        (nested(FIELD_DEPTH + 1), f"nested more than {FIELD_DEPTH} levels deep"),
        ({"a": "x" * (FIELD_BYTES - 8)}, None),
        ({"a": "x" * (FIELD_BYTES - 7)}, f"is {FIELD_BYTES + 1} bytes as JSON; at most {FIELD_BYTES}"),
        ({"a": "é" * (FIELD_BYTES // 2)}, f"is {FIELD_BYTES + 8} bytes as JSON; at most {FIELD_BYTES}"),
        ({"\ud800": 1}, None),
    ],
)
def test_the_limits(value: Any, said: str | None) -> None:
    problems = oversized(manifest(("spec", "rollout", "engineArgs"), value))
    assert [problem.message for problem in problems] == ([said] if said else [])


def test_a_spec_has_a_limit_as_a_whole() -> None:
    one = {"engineArgs": {"a": "x" * (FIELD_BYTES - 100)}}
    spec = {"rollout": one | {"generate": {"args": one}}, "model": {"overrides": one}, "trainer": {"megatronArgs": one}}
    assert oversized({"spec": spec}) == []
    (problem,) = oversized({"spec": spec | {"algorithm": {"tis": {"args": one}}}})
    assert (problem.path, "bytes as JSON; at most" in problem.message) == ("spec", True)


@pytest.mark.parametrize("value", [None, 3, "x", [], {"spec": None}, {"spec": [1]}, {"spec": {"rollout": 3}}])
def test_what_is_no_manifest_is_not_its_matter(value: Any) -> None:
    assert oversized(value) == []


def test_a_list_or_a_text_in_place_of_a_map_is_bounded_too() -> None:
    path = ("spec", "rollout", "engineArgs")
    assert oversized(manifest(path, [0] * (FIELD_ELEMENTS + 1)))
    assert oversized(manifest(path, "x" * FIELD_BYTES))


class Untouched(list[Any]):
    """A list that nobody may go through."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it is too long, which its length tells")


def test_what_is_too_large_is_not_looked_at_any_further() -> None:
    (problem,) = oversized(manifest(("spec", "rollout", "engineArgs"), {"a": Untouched([0] * (FIELD_ELEMENTS + 1))}))
    assert problem.message.startswith("has more than")
