"""How large the free-form parts of a manifest may be: maps whose keys and values the schema does not know.

Looked at before anything else is done with them. CEL cannot look inside, and a bound of the definition would keep the
apiserver from writing to jobs that were stored before it; so the command line and the operator say it. The cost is
linear: what is too large is looked at no further than its limit.
"""

import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from rljob_api.errors import Problem
from rljob_api.manifest.document import MAX_BYTES, Location
from rljob_api.manifest.explain import render
from rljob_api.v1alpha1.job import RLJobSpec

FIELD_BYTES = 256 * 1024
"""Bytes of one free-form field, as compact JSON."""
FIELD_ELEMENTS = 10_000
"""Entries of all maps and lists of one free-form field."""
FIELD_DEPTH = 32
"""Levels of maps and lists in one free-form field."""
_FILES: Location = ("spec", "code", "files")
"""Has a limit of its own (`rules.training.CODE_LIMIT`)."""


def oversized(manifest: Any) -> list[Problem]:
    """The free-form fields of an unvalidated manifest that are too large; the spec, when it is as a whole."""
    spec = manifest.get("spec") if isinstance(manifest, dict) else None
    problems = [
        Problem(render(path), excess)
        for path, value in free_fields(RLJobSpec, spec, ("spec",))
        if (excess := _excess(value, MAX_BYTES if path == _FILES else FIELD_BYTES))
    ]
    if not problems and (size := _bytes(spec)) > MAX_BYTES:
        problems.append(Problem("spec", f"is {size} bytes as JSON; at most {MAX_BYTES}"))
    return problems


def free_fields(annotation: Any, value: Any, path: Location) -> Iterator[tuple[Location, Any]]:
    """Every map of a value that is annotated as one, with its path: those of models are looked into, not named."""
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(value, dict):
            for name, field in annotation.model_fields.items():
                if (key := field.alias or name) in value:
                    yield from free_fields(field.annotation, value[key], (*path, key))
    elif origin is dict or annotation is Any:
        yield path, value
    elif origin is list:
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from free_fields(get_args(annotation)[0], item, (*path, index))
    else:
        for inner in get_args(annotation):  # Optional, Annotated
            yield from free_fields(inner, value, path)


def _excess(value: Any, most_bytes: int) -> str | None:
    """By what a value is too large, in words; None when it is not."""
    elements, level = 0, [value]
    for _ in range(FIELD_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict | list):
                elements += len(node)
                if elements > FIELD_ELEMENTS:
                    return f"has more than {FIELD_ELEMENTS} entries, in maps and lists at all levels"
                below += node.values() if isinstance(node, dict) else node
        level = below
    if any(isinstance(node, dict | list) for node in level):
        return f"nested more than {FIELD_DEPTH} levels deep"
    size = _bytes(value)
    return f"is {size} bytes as JSON; at most {most_bytes}" if size > most_bytes else None


def _bytes(value: Any) -> int:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "surrogatepass"))
