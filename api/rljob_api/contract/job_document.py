"""The contract between what writes a job's document and the processes that read it, which may be of other versions.

The operator (or `rljob run`) writes the RLJob for the driver, the preparation and the retriever. Their image may be
older or newer. So the writer leaves out what equals a default, and says in two annotations of the document which
version of the contract it speaks (a reader of 1.0 ignores annotations, and nothing else) and which fields a reader
has to know. A reader ignores, with a warning, what a newer minor version has added beside those, and refuses a newer
major version.

A field that is added after 1.0 is marked where it is declared, and raises `VERSION`:

    novelty: Annotated[float, Since("1.1")] = 0.0

Within a major version no default changes: the reader fills in its own.
"""

import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rljob_api.contract.other_versions import unreadable_parts, without
from rljob_api.errors import ManifestError, UserError
from rljob_api.manifest.document import Document, Location
from rljob_api.manifest.explain import render
from rljob_api.manifest.load import job_from, read
from rljob_api.v1alpha1.base import Since
from rljob_api.v1alpha1.job import RLJob

logger = logging.getLogger(__name__)
MANIFEST_KEY = "rljob.json"
"""The document in the ConfigMap `<job>-config`, and the file of this name that the job's processes read."""
VERSION_ANNOTATION = "rljob.io/contract"
"""Of the document: the version that wrote it. Without it: 1.0."""
MUST_ANNOTATION = "rljob.io/must-understand"
"""Of the document: JSON list of locations, such as `[["spec", "algorithm", "novelty"]]`, that a reader has to know."""


class Version(NamedTuple):
    """A version of the contract."""

    major: int
    """Another one cannot be read at all."""
    minor: int
    """A later one adds fields with defaults, or values that a field may have."""

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parse(cls, text: str) -> "Version":
        """From `1.2`. Raises ValueError."""
        major, separator, minor = text.partition(".")
        if not (separator and text.isascii() and major.isdigit() and minor.isdigit()) or len(text) > 16:
            raise ValueError(f"{text[:32]!r} is not a version such as {VERSION}")
        return cls(int(major), int(minor))


VERSION = Version(1, 1)
"""What this version of the code writes, and reads whole."""
FIRST = Version(1, 0)
"""The version of documents that name none."""
NEWER_IMAGE = "give the job a newer image (spec.images, or jobs.images of the operator's chart)"


def document(job: RLJob, metadata: dict[str, Any]) -> dict[str, Any]:
    """The job for its processes, with this metadata: what equals a default is left out, the version is in it."""
    annotations = (metadata.get("annotations") or {}) | {VERSION_ANNOTATION: str(VERSION)}
    annotations.pop(MUST_ANNOTATION, None)
    if must := list(must_understand(job.spec, ("spec",))):
        annotations[MUST_ANNOTATION] = json.dumps(must)
    return {
        "apiVersion": job.api_version,
        "kind": job.kind,
        "metadata": metadata | {"annotations": annotations},
        "spec": pruned(job.spec),
    }


def load_document(path: Path | str, part: Location = (), model: type[RLJob] = RLJob) -> RLJob:
    """Read the job as its operator, or `rljob run`, has written it for a process that reads `part` of it.

    Of a document of a newer minor version of the contract, fields that this version does not know are left out, with a
    warning that names them. Raises UserError for a newer major version, or when one of them (beneath `part`) must not
    be left out. A document of this version, or of none, is read as strictly as by `load`.
    """
    written = read(path)
    version, must = _stamps(written)
    if version.major != VERSION.major:
        raise UserError(
            f"{written.source}: the job was written for images of contract {version}; this one reads {VERSION.major}.x",
            hint=NEWER_IMAGE if version > VERSION else "upgrade the operator",
        )
    if version <= VERSION:
        return job_from(written, model)
    newer = f"written by contract {version}; this image has {VERSION}"
    unknown = _unknown(written.value, model)
    if needed := _not_to_ignore(unknown, must, part):
        raise UserError(
            f"{written.source}: this image does not know {_listed(needed)}, without which the job would be another "
            f"({newer})",
            hint=f"{NEWER_IMAGE}, or leave this out of the job",
        )
    if unknown:
        logger.warning("%s: left out, since this image does not know it: %s (%s)", path, _listed(unknown), newer)
    try:
        return job_from(Document(written.source, without(written.value, unknown), written.lines), model)
    except ManifestError as error:
        raise UserError(f"{error.message} ({newer})", hint=NEWER_IMAGE) from None


def pruned(model: BaseModel) -> dict[str, Any]:
    """The model as Kubernetes carries it, without what equals a default, at any depth: an equal model is read back."""

    return _dump(model, lambda field, value: value == field.default or field.read_by_operator_alone)


def spelt_out(model: BaseModel) -> dict[str, Any]:
    """The model with every default of contract 1.0 in it, and of later fields those that are set.

    For what is compared with what another version has written, or digested: a field that is new and not used changes
    nothing.
    """
    return _dump(model, lambda field, value: field.since is not None and value == field.default)


def must_understand(model: BaseModel, at: Location = ()) -> Iterator[Location]:
    """Locations of the set fields that a process must not ignore; `at`: that of the model."""
    for field in _fields(type(model)):
        value, location = getattr(model, field.name), (*at, field.key)
        if value == field.default or field.read_by_operator_alone:
            continue
        if field.since is not None and field.since.reading == "Must":
            yield location
        for inner, child in _models(value, location):
            yield from must_understand(child, inner)


def since_of(info: FieldInfo) -> Since | None:
    """The mark of a field; None: it was in contract 1.0."""
    return next((mark for mark in info.metadata if isinstance(mark, Since)), None)


def _stamps(document: Document) -> tuple[Version, list[Location]]:
    """The version that wrote the document, and the locations that must be understood."""
    metadata = document.value.get("metadata") if isinstance(document.value, dict) else None
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    try:
        return _version(annotations), _must(annotations)
    except ValueError as error:
        raise UserError(f"{document.source}: metadata.annotations: the version of the contract: {error}") from None


def _unknown(value: Any, model: type[RLJob]) -> list[Location]:
    """Locations of the fields that the model does not have, in the document's order; of a whole subtree its root."""
    try:
        model.model_validate(value, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        found = [part.location for part in unreadable_parts(error, value) if part.unknown]
        return sorted(found, key=functools.partial(_order_in, value))
    return []


def _order_in(value: Any, location: Location) -> list[int]:
    """Where a location comes in the order of the value's keys and items."""
    order = []
    for step in location:
        order.append(step if isinstance(step, int) else list(value).index(step))
        value = value[step]
    return order


def _version(annotations: Any) -> Version:
    """The version that a document's annotations name. Raises ValueError."""
    text = annotations.get(VERSION_ANNOTATION) if isinstance(annotations, dict) else None
    return FIRST if text is None else Version.parse(str(text))


def _must(annotations: Any) -> list[Location]:
    """The locations that a document's annotations say must be understood. Raises ValueError."""
    text = annotations.get(MUST_ANNOTATION) if isinstance(annotations, dict) else None
    found = json.loads(str(text)) if text is not None else []
    if not isinstance(found, list) or not all(isinstance(location, list) for location in found):
        raise ValueError("is not a list of locations")
    return [tuple(location) for location in found]


def _not_to_ignore(unknown: Iterable[Location], must: Sequence[Location], part: Location = ()) -> list[Location]:
    """Of the fields that a reader does not know those that it must not ignore; of these, what lies beneath `part`."""
    return [
        location
        for location in unknown
        if any(wanted[: len(location)] == location and wanted[: len(part)] == part for wanted in must)
    ]


def _listed(locations: Sequence[Location]) -> str:
    more = f" and {len(locations) - 10} more" if len(locations) > 10 else ""
    return ", ".join(render(location) for location in locations[:10]) + more


def _dump(model: BaseModel, left_out: "Callable[[_Field, Any], bool]") -> dict[str, Any]:
    dumped = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    result: dict[str, Any] = _select(model, dumped, left_out)
    return result


def _select(value: Any, dumped: Any, left_out: "Callable[[_Field, Any], bool]") -> Any:
    """Of a value's JSON form what is not left out."""
    if isinstance(value, list | tuple):
        return [_select(child, entry, left_out) for child, entry in zip(value, dumped, strict=True)]
    if not isinstance(value, BaseModel):
        return dumped
    result = dict(dumped)
    for field in _fields(type(value)):
        key, child = field.key, getattr(value, field.name)
        if key not in dumped:
            continue
        if left_out(field, child):
            del result[key]
        elif isinstance(child, BaseModel | list | tuple):
            result[key] = _select(child, dumped[key], left_out)
    return result


_REQUIRED: Any = object()
"""The default of a field that has none: equal to no value."""


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a model, as the contract sees it."""

    name: str
    key: str
    """Its name in documents."""
    default: Any
    since: Since | None

    @property
    def read_by_operator_alone(self) -> bool:
        return self.since is not None and self.since.reading == "Never"


@functools.cache
def _fields(model: type[BaseModel]) -> tuple[_Field, ...]:
    """The fields of a model. Remembered, since pydantic looks at the signature of a default's factory each time, and
    the operator asks for every job at every look."""
    return tuple(
        _Field(
            name,
            info.alias or name,
            _REQUIRED if info.is_required() else info.get_default(call_default_factory=True),
            since_of(info),
        )
        for name, info in model.model_fields.items()
    )


def _models(value: Any, at: Location) -> Iterator[tuple[Location, BaseModel]]:
    """The models in a field's value: itself, or those of a list."""
    if isinstance(value, BaseModel):
        yield at, value
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _models(child, (*at, index))
