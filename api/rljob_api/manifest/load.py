"""From a file to an RLJob, or to sentences about what is wrong with it."""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rljob_api.contract.job_document import VERSION, Version, not_to_ignore, said_must, said_version
from rljob_api.manifest.document import MAX_BYTES, Document, Location, parse_document, read_document
from rljob_api.manifest.errors import ManifestError, Problem, UserError
from rljob_api.manifest.explain import child_model, problems_of, render
from rljob_api.v1alpha1.job import API_VERSION, KIND, RLJob

logger = logging.getLogger(__name__)
NEWER_IMAGE = "give the job a newer image (spec.images, or jobs.images of the operator's chart)"


def load(path: Path | str) -> RLJob:
    """Read an RLJob from a YAML or JSON file (`-`: standard input).

    Raises UserError when the file cannot be read, ManifestError with one line per problem when a field is wrong.
    What crosses fields is not looked at here: see `checks.check`.
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


def load_document(path: Path | str, part: Location = (), model: type[RLJob] = RLJob) -> RLJob:
    """Read the job as its operator, or `rljob run`, has written it for a process that reads `part` of it.

    Of a document of a newer minor version of the contract, fields that this version does not know are left out, with a
    warning that names them. Raises UserError for a newer major version, or when one of them (beneath `part`) must not
    be left out. A document of this version, or of none, is read as strictly as by `load`.
    """
    document = read(path)
    version, must = _stamps(document)
    if version.major != VERSION.major:
        raise UserError(
            f"{document.source}: the job was written for images of contract {version}; this one reads "
            f"{VERSION.major}.x",
            hint=NEWER_IMAGE if version > VERSION else "upgrade the operator",
        )
    if version <= VERSION:
        return job_from(document, model)
    newer = f"written by contract {version}; this image has {VERSION}"
    unknown = list(_unknown(document.value, model))
    if needed := not_to_ignore(unknown, must, part):
        raise UserError(
            f"{document.source}: this image does not know {_listed(needed)}, without which the job would be another "
            f"({newer})",
            hint=f"{NEWER_IMAGE}, or leave this out of the job",
        )
    if unknown:
        logger.warning("%s: left out, since this image does not know it: %s (%s)", path, _listed(unknown), newer)
    try:
        return job_from(Document(document.source, _without(document.value, unknown), document.lines), model)
    except ManifestError as error:
        raise UserError(f"{error.message} ({newer})", hint=NEWER_IMAGE) from None


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


def _stamps(document: Document) -> tuple[Version, list[Location]]:
    """The version that wrote the document, and the locations that must be understood."""
    metadata = document.value.get("metadata") if isinstance(document.value, dict) else None
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    try:
        return said_version(annotations), said_must(annotations)
    except ValueError as error:
        raise UserError(f"{document.source}: metadata.annotations: the version of the contract: {error}") from None


def _unknown(value: Any, model: type[BaseModel], at: Location = ()) -> Iterator[Location]:
    """Locations of the fields that the model does not have; of a whole subtree its root."""
    if isinstance(value, list):
        for index, child in enumerate(value):
            yield from _unknown(child, model, (*at, index))
    if not isinstance(value, dict):
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, entry in value.items():
        if key in fields:
            child_of, _ = child_model(fields[key].annotation)
            if child_of is not None:
                yield from _unknown(entry, child_of, (*at, key))
        elif model.model_config.get("extra") == "forbid":
            yield (*at, key)


def _without(value: Any, locations: Sequence[Location]) -> Any:
    """A copy of the value without these parts."""
    if isinstance(value, list):
        return [_without(child, [at[1:] for at in locations if at[0] == index]) for index, child in enumerate(value)]
    if not isinstance(value, dict):
        return value
    gone = {at[0] for at in locations if len(at) == 1}
    return {
        key: _without(child, [at[1:] for at in locations if at[0] == key])
        for key, child in value.items()
        if key not in gone
    }


def _listed(locations: Sequence[Location]) -> str:
    more = f" and {len(locations) - 10} more" if len(locations) > 10 else ""
    return ", ".join(render(location) for location in locations[:10]) + more
