"""From a file to an RLJob, or to sentences about what is wrong with it."""

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rljob_api.errors import ManifestError, Problem, UserError
from rljob_api.manifest.document import MAX_BYTES, Document, parse_document, read_document
from rljob_api.manifest.explain import child_model, problems_of
from rljob_api.v1alpha1.job import API_VERSION, KIND, RLJob


def load(path: Path | str) -> RLJob:
    """Read an RLJob from a YAML or JSON file (`-`: standard input).

    Raises UserError when the file cannot be read, ManifestError with one line per problem when a field is wrong.
    What crosses fields is not looked at here: see `rules.checks.check`.
    """
    return job_from(read(path))


def read(path: Path | str) -> Document:
    """The document of a file (`-`: standard input), unvalidated."""
    if str(path) == "-":
        return parse_document(sys.stdin.buffer.read(MAX_BYTES + 1), "standard input")
    return read_document(Path(path))


def loads(text: str | bytes, source: str = "manifest") -> RLJob:
    """As `load`, of text that came from `source`."""
    return job_from(parse_document(text.encode() if isinstance(text, str) else text, source))


def job_from(document: Document, model: type[RLJob] = RLJob) -> RLJob:
    """Validate a document strictly: "16" is no integer, as for the apiserver."""
    value = document.value
    if not isinstance(value, dict):
        raise UserError(f"{document.source}: is not an RLJob: a mapping with apiVersion, kind, metadata and spec")
    if value.get("kind") != KIND or value.get("apiVersion") != API_VERSION:
        raise UserError(
            f"{document.source}: is {value.get('apiVersion', 'no apiVersion')} {value.get('kind', 'without kind')}, "
            f"not {API_VERSION} {KIND}"
        )
    _require_metadata(document)
    try:
        return model.model_validate(without_nulls(value, model), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(document.source, problems_of(error, document, model)) from None


def without_nulls(value: Any, model: type[BaseModel] = RLJob) -> Any:
    """A null stands for a field that was left out, as it does to the apiserver. Free maps keep theirs."""
    if isinstance(value, list):
        return [without_nulls(child, model) for child in value]
    if not isinstance(value, dict):
        return value
    children = {field.alias or name: child_model(field.annotation)[0] for name, field in model.model_fields.items()}
    return {
        key: without_nulls(entry, child) if (child := children.get(key)) else entry
        for key, entry in value.items()
        if entry is not None
    }


def _require_metadata(document: Document) -> None:
    metadata = document.value.get("metadata")
    if not isinstance(metadata, dict):
        raise ManifestError(document.source, [Problem("metadata", "required, with a name", document.line(()))])
