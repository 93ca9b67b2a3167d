"""A manifest from the command line: the file, with `--overlay` files and `--set` on top."""

import copy
import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

from rljob_api.errors import ManifestError, Problem, UserError
from rljob_api.manifest.document import Document, Location, parse_document
from rljob_api.manifest.free_form import oversized
from rljob_api.manifest.load import job_from, read
from rljob_api.v1alpha1.job import RLJob, RLJobSpec

_SECTIONS = {info.alias or name for name, info in RLJobSpec.model_fields.items()}


@dataclass(frozen=True)
class Manifest:
    """A manifest as the user wrote it, and the job that it describes."""

    source: str
    raw: dict[str, Any]
    """Without defaults: what is sent to a cluster, so that the user owns what the user wrote."""
    job: RLJob
    document: Document

    def located(self, problems: list[Problem]) -> list[Problem]:
        """The problems with the lines that they are about, or that are nearest around."""
        return _located(self.document, problems)


def _located(document: Document, problems: list[Problem]) -> list[Problem]:
    return [replace(problem, line=document.line(_location(problem.path)) or None) for problem in problems]


def load_manifest(path: str, overrides: list[str] | None = None, overlays: list[str] | None = None) -> Manifest:
    """Read a file (`-`: standard input), merge the overlay files in their order, apply `spec.path=value` overrides,
    validate. Raises UserError."""
    document = read(path)
    for overlay in overlays or []:
        document = merge(document, read(overlay))
    document = override(document, overrides or [])
    if too_large := oversized(document.value):
        raise ManifestError(document.source, _located(document, too_large))
    job = job_from(document)
    return Manifest(document.source, document.value, job, document)


def merge(document: Document, overlay: Document) -> Document:
    """The document with an overlay on top, as a JSON merge patch (RFC 7386): mappings are merged, everything else,
    lists too, is replaced, null removes. Raises UserError when the overlay is no mapping or is of another kind."""
    if not isinstance(overlay.value, dict):
        raise UserError(f"{overlay.source}: is no overlay: a mapping with the fields to change, such as spec")
    for field in ("apiVersion", "kind"):
        given = overlay.value.get(field)
        if given is not None and isinstance(document.value, dict) and given != document.value.get(field):
            raise UserError(f"{overlay.source}: {field} {given} is not that of {document.source}")
    # A line of the overlay would be read as one of the manifest: what it changes has none.
    lines = document.lines | dict.fromkeys(overlay.lines, 0)
    return Document(document.source, _merged(document.value, overlay.value), lines | {(): document.lines.get((), 0)})


def _merged(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        if change is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), change)
    return result


def override(document: Document, overrides: list[str]) -> Document:
    """The document with each `path=value` set. Values are read as YAML: `3`, `1e-6`, `true`, `[a, b]`, `null`."""
    if not overrides or not isinstance(document.value, dict):
        return document
    value, lines = copy.deepcopy(document.value), dict(document.lines)
    for text in overrides:
        path, separator, given = text.partition("=")
        if not separator or not path:
            raise UserError(f"--set {text}: write it as spec.path=value, such as spec.rollout.numRollout=10")
        location = _location(path)
        _set(value, location, _value(given, path), text)
        lines[location] = 0  # The line in the file is not to blame.
    return Document(document.source, value, lines)


def _location(path: str) -> Location:
    parts: list[str | int] = []
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        parts.append(int(index) if index else name)
    if parts and parts[0] in _SECTIONS and parts[0] != "metadata":
        parts.insert(0, "spec")
    return tuple(parts)


def _value(text: str, path: str) -> Any:
    if not text.strip():
        return text
    try:
        return parse_document(text.encode(), f"--set {path}").value
    except UserError:
        return text  # Text with a colon or a bracket in it, not YAML.


def _set(node: Any, location: Location, value: Any, text: str) -> None:
    if not location:
        raise UserError(f"--set {text}: names no field")
    for part, following in itertools.pairwise(location):
        node = _step(node, part, [] if isinstance(following, int) else {}, text)
    last = location[-1]
    if isinstance(node, dict) and isinstance(last, str):
        node[last] = value
    elif isinstance(node, list) and isinstance(last, int) and last <= len(node):
        node[last : last + 1] = [value]
    else:
        raise UserError(f"--set {text}: there is no such place in the manifest")


def _step(node: Any, part: str | int, empty: Any, text: str) -> Any:
    if isinstance(node, dict) and isinstance(part, str):
        if node.get(part) is None:
            node[part] = empty
        return node[part]
    if isinstance(node, list) and isinstance(part, int) and part <= len(node):
        if part == len(node):
            node.append(empty)
        return node[part]
    raise UserError(f"--set {text}: there is no such place in the manifest")
