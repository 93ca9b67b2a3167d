"""What every model of the RLJob API shares: strict fields, camelCase names and bounded scalar types.

Strings, lists and maps are bounded because the apiserver estimates the cost of a CEL rule from those bounds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import core_schema


class ApiModel(BaseModel):
    """A part of the RLJob API: unknown fields are refused, attribute docstrings become the documentation."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=False,
        protected_namespaces=(),
        ser_json_inf_nan="strings",
        allow_inf_nan=False,
    )

    def to_api(self) -> dict[str, Any]:
        """The object as Kubernetes carries it: camelCase keys, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Since:
    """Marks a field that came after contract 1.0, as metadata of its annotation. Such a field has a default."""

    version: str
    """Version of the contract that brought it."""
    reading: Literal["Must", "May", "Never"] = "Must"
    """What a process does that does not know the field, once it is set: `Must`: it refuses the job; `May`: it goes on
    without it, and says so. `Never`: the operator alone reads it, and does not write it into the document."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """Marks text that is one of some names, as `Literal[…]` does for names that are known when the code is written."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """See pydantic."""
        return core_schema.literal_schema(list(self.names))


def one_of(names: Iterable[str]) -> OneOf:
    """For `Annotated[str, …]`: one of the names that a catalogue holds."""
    return OneOf(tuple(names))


ShortStr = Annotated[str, Field(max_length=256)]
"""A name, an enum-like value or a short phrase."""
PathStr = Annotated[
    str,
    Field(
        # Parts between slashes: none is "..", none holds a control character. RE2 has no look-ahead to say it shorter.
        pattern=r"^/*(\.?[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*|\.\.[^/\x00-\x1f\x7f]+|\.)"
        r"(/+(\.?[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*|\.\.[^/\x00-\x1f\x7f]+|\.))*/*$",
        min_length=1,
        max_length=1024,
    ),
]
"""A file or folder: absolute, or relative to the job's directory; or a Hub id where the field says so."""
FolderStr = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$", max_length=1024)
]
"""A folder within a volume: relative, of plain names."""
LongStr = Annotated[str, Field(max_length=65536)]
"""Text such as a chat template or a system prompt."""
DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""An RFC 1123 label."""
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""An RFC 1123 subdomain."""
ImportPath = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$", max_length=256),
]
"""A Python object as `package.module:name`."""
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$", max_length=2048)]
"""An http or https address."""
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$", max_length=32)]
"""A Kubernetes resource quantity, such as `500m` or `16Gi`."""
PositiveInt = Annotated[int, Field(ge=1, le=2_147_483_647)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2_147_483_647)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
FreeMap = Annotated[dict[Annotated[str, Field(max_length=128)], Any], Field(max_length=256)]
"""Arguments passed through as they are: any JSON values under string keys."""
QualifiedName = Annotated[
    str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=316)
]
"""Key of a label or an annotation, such as `team` or `example.com/team`."""
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
LabelMap = Annotated[dict[QualifiedName, LabelValue], Field(max_length=64)]
StringMap = Annotated[dict[QualifiedName, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
"""Name of an environment variable."""
SecretKey = Annotated[str, Field(pattern=r"^[-._A-Za-z0-9]+$", max_length=253)]
"""Key within a Secret."""


class SecretKeyRef(ApiModel):
    """One key of a Secret in the job's namespace. Locally the environment variable named by `env` is read instead."""

    name: DnsName
    """Name of the Secret."""
    key: SecretKey
    """Key within the Secret."""
    env: EnvName | None = None
    """Environment variable that carries the value into the process; by default the one the consumer expects."""
