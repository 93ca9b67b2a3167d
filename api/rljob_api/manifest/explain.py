"""pydantic's errors as sentences about the manifest: `spec.rollout.batchSze: unknown field; did you mean batchSize?`"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rljob_api.errors import Problem
from rljob_api.manifest.document import Document, Location
from rljob_api.v1alpha1.base import FolderStr, LabelValue, OneOf, PathStr, QualifiedName
from rljob_api.v1alpha1.job import RLJob


def _pattern(annotated: Any) -> str:
    """The pattern of one of the scalar types."""
    field = get_args(annotated)[1]
    return next(str(m.pattern) for m in field.metadata if getattr(m, "pattern", None))


_PATTERNS = {
    r"^[a-z]([-a-z0-9]*[a-z0-9])?$": "lower-case letters, digits and '-', beginning with a letter",
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": "lower-case letters, digits and '-', such as my-name",
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": "lower-case letters, digits, '-' and '.', such as my-name",
    r"^https?://[^\s]+$": "an http or https address",
    r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$": "a quantity such as 500m or 16Gi",
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$": "a plain file name such as reward.py",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "a name of letters, digits and '_'",
    r"^[^\s]+$": "text without blanks",
    r"^[-._A-Za-z0-9]+$": "a key of letters, digits, '-', '_' and '.'",
    _pattern(PathStr): "a path whose parts are none of them '..' nor hold control characters",
    _pattern(FolderStr): "a relative folder of plain names such as runs/my-job",
    _pattern(QualifiedName): "a key such as team or example.com/team",
    _pattern(LabelValue): "a label's value: letters, digits, '-', '_' and '.', at most 63",
}
_IMPORT_PATH = "an import path such as package.module:function"
_TYPES = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (put it in quotes)",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def problems_of(error: ValidationError, document: Document, model: type[BaseModel] = RLJob) -> list[Problem]:
    """One problem for each field that is wrong, in the order of the manifest."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        location = _location(detail["loc"], document.value)
        path = render(location)
        problem = Problem(path, _message(detail, location, model), document.line(location))
        known = found.get(path)
        if known and detail["type"] == "literal_error":  # One branch of a union: any other says more.
            continue
        found[path] = problem
    return sorted(found.values(), key=lambda problem: (problem.line or 0, problem.path))


def render(location: Location) -> str:
    """`("spec", "reward", "functions", 0)` as `spec.reward.functions[0]`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def _location(parts: tuple[str | int, ...], value: Any) -> Location:
    """pydantic's location without the names of union branches, which are no part of the manifest."""
    location: list[str | int] = []
    for index, part in enumerate(parts):
        inside = isinstance(value, dict) if isinstance(part, str) else isinstance(value, list)
        last = index == len(parts) - 1
        if part == "[key]":
            continue
        if not inside or (isinstance(part, str) and part not in value and not last):
            continue
        location.append(part)
        try:
            value = value[part]
        except (KeyError, IndexError):
            value = None
    return tuple(location)


def _message(detail: Any, location: Location, model: type[BaseModel]) -> str:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(location, model)
    if kind == "missing":
        return "required"
    if kind in _TYPES:
        return f"{show(given)} is not {_TYPES[kind]}{_bounds(location, model) if 'int' in kind else ''}"
    if kind == "literal_error":
        # A name of a catalogue stands in no annotation: pydantic tells what it has compared with.
        allowed = _literals(location, model) or re.findall(r"'([^']*)'", context["expected"])
        return f"{show(given)} is not one of {', '.join(allowed)}{_meant(str(given), allowed)}"
    if kind in ("greater_than_equal", "greater_than"):
        bound = context.get("ge", context.get("gt"))
        return f"{show(given)} is too small; it must be {'≥' if 'ge' in context else '>'} {bound:g}"
    if kind in ("less_than_equal", "less_than"):
        bound = context.get("le", context.get("lt"))
        return f"{show(given)} is too large; it must be {'≤' if 'le' in context else '<'} {bound:g}"
    if kind == "string_pattern_mismatch":
        wanted = _PATTERNS.get(context["pattern"], _IMPORT_PATH if ":" in context["pattern"] else context["pattern"])
        return f"{show(given)} is not {wanted}"
    if kind in ("string_too_long", "too_long"):
        what = "characters" if kind == "string_too_long" else "entries"
        return f"has {len(given)} {what}; at most {context['max_length']}"
    if kind in ("string_too_short", "too_short"):
        what = "character" if kind == "string_too_short" else "entry"
        return f"is empty; at least {context['min_length']} {what}"
    return str(detail["msg"])


def show(value: Any) -> str:
    """A value as it stands in a manifest, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _unknown(location: Location, model: type[BaseModel]) -> str:
    name = str(location[-1])
    parent = _model_at(location[:-1], model)
    names = _aliases(parent) if parent else []
    elsewhere = [path for path in field_paths(model) if path.rsplit(".", 1)[-1] == name]
    if 0 < len(elsewhere) <= 3:
        return f"unknown field; did you mean {' or '.join(elsewhere)}?"
    return f"unknown field{_meant(name, names)}"


def _meant(name: str, names: list[str]) -> str:
    folded = {candidate.lower().replace("_", ""): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower().replace("_", ""), folded, n=1, cutoff=0.7)
    return f"; did you mean {folded[close[0]]}?" if close else ""


def _aliases(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields; through lists as `functions[]`."""
    for name, info in model.model_fields.items():
        alias = f"{prefix}{info.alias or name}"
        yield alias
        if alias == "status":
            continue
        child, is_list = child_model(info.annotation)
        if child:
            yield from field_paths(child, f"{alias}[]." if is_list else f"{alias}.")


def child_model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model within an annotation (through Optional, Annotated and list), and whether it is in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin = get_origin(annotation)
    for argument in get_args(annotation):
        child, nested = child_model(argument)
        if child:
            return child, nested or origin is list
    return None, False


def _field_at(location: Location, model: type[BaseModel]) -> tuple[type[BaseModel] | None, Any]:
    """The model that holds a location's field, and the field."""
    current: type[BaseModel] | None = model
    holder, info = current, None
    for part in location:
        if isinstance(part, int):
            continue
        if current is None:
            return None, None
        holder = current
        info = next((field for name, field in holder.model_fields.items() if (field.alias or name) == part), None)
        if info is None:
            return holder, None
        current, _ = child_model(info.annotation)
    return holder, info


def _model_at(location: Location, model: type[BaseModel]) -> type[BaseModel] | None:
    if not location:
        return model
    _, info = _field_at(location, model)
    return child_model(info.annotation)[0] if info else None


def _bounds(location: Location, model: type[BaseModel]) -> str:
    _, info = _field_at(location, model)
    lowest = [m.ge for m in getattr(info, "metadata", []) if getattr(m, "ge", None) is not None]
    return f" (≥ {lowest[0]:g})" if lowest else ""


def _literals(location: Location, model: type[BaseModel]) -> list[str]:
    _, info = _field_at(location, model)
    return [*_names(info.metadata), *_names(get_args(info.annotation))] if info else []


def _names(arguments: Iterable[Any]) -> Iterator[str]:
    """The names among the arguments of an annotation."""
    for argument in arguments:
        if isinstance(argument, str):
            yield argument
        elif isinstance(argument, OneOf):
            yield from argument.names
        else:
            yield from _names(get_args(argument))
