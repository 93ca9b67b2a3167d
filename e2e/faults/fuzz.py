"""Manifests made from the CRD's own schema: good ones with a few fields set to what the schema allows, to its limits
and beyond them, to values of another type, and to what an attacker or a typing error would put there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from e2e.faults.manifest import manifest

CRD = Path(__file__).resolve().parents[2] / "crds/rljobs.yaml"
Schema = dict[str, Any]
Field = tuple[tuple[str, ...], Schema]
_NASTY = (
    "", " ", "..", "../../etc/passwd", "/etc/shadow", "$(id)", "`id`", "${HOME}", "a\nb: c", "{{ .Values.x }}", "-rf",
    "a" * 300, "é" * 64, "\u0000", "\u202e", "null", "true", "1e309", "a=b,c=d", "rljob.io/job=other", "*", "%s%n",
    "Robert'); DROP TABLE jobs;--", "<script>", "💥",
)  # fmt: skip


def fields(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Every field of a schema that has a name of its own."""
    for name, inner in (schema.get("properties") or {}).items():
        yield (*path, name), inner
        yield from fields(inner, (*path, name))


def values(schema: Schema, depth: int = 0) -> st.SearchStrategy[Any]:
    """What the schema of a field allows, nearly."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    low, high = schema.get("minimum"), schema.get("maximum")
    match schema.get("type"):
        case "integer":
            return st.integers(int(low if low is not None else -(2**31)), int(high if high is not None else 2**31))
        case "number":
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=min(40, schema.get("maxLength", 40)))
        case "array" if depth < 4:
            return st.lists(values(schema.get("items") or {}, depth + 1), max_size=3)
        case "object" if depth < 4 and schema.get("properties"):
            optional = {name: values(inner, depth + 1) for name, inner in schema["properties"].items()}
            required = {name: optional.pop(name) for name in schema.get("required") or [] if name in optional}
            chosen = dict(list(optional.items())[:8])
            return st.fixed_dictionaries(required, optional=chosen)
        case "object" if depth < 4:
            inner = schema.get("additionalProperties")
            each = values(inner, depth + 1) if isinstance(inner, dict) else st.text(max_size=8)
            return st.dictionaries(st.text(max_size=12), each, max_size=3)
    return st.none() | st.booleans() | st.integers() | st.text(max_size=8)


def limits(schema: Schema) -> list[Any]:
    """The limits of a field, and one step beyond them."""
    found: list[Any] = []
    for key in ("minimum", "maximum"):
        if isinstance(limit := schema.get(key), int):
            found += [limit - 1, limit, limit + 1]
    if isinstance(longest := schema.get("maxLength"), int) and longest <= 5000:
        found += ["a" * longest, "a" * (longest + 1)]
    if isinstance(most := schema.get("maxItems"), int) and most <= 200:
        found.append([None] * (most + 1))
    return found


def wrong(schema: Schema) -> st.SearchStrategy[Any]:
    """What does not belong there."""
    deep: Any = "x"
    for _ in range(30):
        deep = {"a": deep}
    others: list[Any] = [None, 0, -1, 2**63 - 1, -0.5, 1e308, True, "", "seven", [], ["x"], {}, {"x": {"y": 1}}, deep]
    return st.sampled_from([*others, *_NASTY, *limits(schema)])


class Fields:
    """The fields of `spec`, and what may be drawn for each."""

    def __init__(self, schema: Schema) -> None:
        self._all = list(fields(schema["properties"]["spec"]))
        self._top = [index for index, (path, _) in enumerate(self._all) if len(path) <= 2]
        self._values: dict[tuple[int, bool], st.SearchStrategy[Any]] = {}

    def draw(self, draw: st.DrawFn) -> tuple[tuple[str, ...], Any]:
        """A path and a value for it, good two times of three."""
        if draw(st.booleans()):
            index = self._top[draw(st.integers(0, len(self._top) - 1))]
        else:
            index = draw(st.integers(0, len(self._all) - 1))
        path, its = self._all[index]
        good = draw(st.integers(0, 2)) > 0
        if (index, good) not in self._values:
            self._values[index, good] = values(its) if good else wrong(its)
        return path, draw(self._values[index, good])


@st.composite
def manifests(draw: st.DrawFn, choice: Fields) -> dict[str, Any]:
    """A good manifest with one to four fields changed. The name is the caller's to set."""
    body = manifest("fuzz", "", **({} if draw(st.booleans()) else {"retriever": None}))
    for _ in range(draw(st.integers(1, 4))):
        path, value = choice.draw(draw)
        _set(body["spec"], path, value)
    if not draw(st.integers(0, 9)):
        body["spec"][draw(st.text(min_size=1, max_size=10))] = draw(st.sampled_from(_NASTY))
    if not draw(st.integers(0, 9)):
        body["metadata"]["labels"] = {"rljob.io/job": "other", "rljob.io/attempt": "7"}
    return body


def _set(spec: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    node = spec
    for part in parents:
        inner = node.get(part)
        if not isinstance(inner, dict):
            inner = node[part] = {}
        node = inner
    node[last] = copy.deepcopy(value)


def generate(count: int) -> list[dict[str, Any]]:
    """So many different manifests, the same in every run."""
    crd = yaml.safe_load(CRD.read_text())
    schema: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: dict[str, dict[str, Any]] = {}

    @settings(
        max_examples=2 * count, derandomize=True, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(manifests(Fields(schema)))
    def keep(body: dict[str, Any]) -> None:
        if len(found) < count:
            found[json.dumps(body["spec"], sort_keys=True)] = body

    keep()
    return list(found.values())
