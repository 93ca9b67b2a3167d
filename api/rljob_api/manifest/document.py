"""Reading one YAML or JSON document from people: exact about types, lines and what is refused.

YAML is read as kubectl reads it (YAML 1.1 booleans; `1e-6` is a number, a date is text), into what JSON can carry.
Aliases are refused (a manifest needs none, and they are how a small file becomes a huge one), as are duplicate keys
and several documents.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rljob_api.errors import UserError
from rljob_api.manifest.nesting import MAX_DEPTH, too_deep

MAX_BYTES = 1 << 20
"""A manifest above 1 MiB is refused: etcd would refuse it too."""
MAX_DIGITS = 64
"""Python refuses to read integers of thousands of digits, with an exception of its own."""

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A document's value, and the line of each of its parts."""

    source: str
    value: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int | None:
        """Line of a part, or of the nearest part around it; None in JSON."""
        for end in range(len(location), -1, -1):
            if (line := self.lines.get(location[:end])) is not None:
                return line
        return None


def read_document(path: Path) -> Document:
    """Read a file. Raises UserError when there is none, it is too large, or it is not one YAML or JSON document."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a manifest") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_document(data, str(path))


def parse_document(data: bytes, source: str) -> Document:
    """As `read_document`, of bytes that came from `source`."""
    if len(data) > MAX_BYTES:
        raise UserError(f"{source}: larger than {MAX_BYTES} bytes, which is the most that a manifest may have")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: is not UTF-8 text (byte {error.start})") from None
    if not text.lstrip().startswith(("{", "[")):
        return _parse_yaml(text, source)
    try:
        return _parse_json(text, source)
    except _NotJsonError as error:
        try:
            return _parse_yaml(text, source)  # YAML in flow style.
        except UserError:
            raise error from None


class _NotJsonError(UserError):
    """Text that only looked like JSON."""


def _parse_json(text: str, source: str) -> Document:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{source}: the key {twice!r} stands twice in one object")
        return result

    def constant(name: str) -> Any:
        raise UserError(f"{source}: {name} is not JSON")

    def integer(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise UserError(f"{source}: {_too_long(digits)}")
        return int(digits)

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=integer)
        if too_deep(value) is not None:
            raise UserError(f"{source}: nested more than {MAX_DEPTH} levels deep")
        return Document(source, value)
    except json.JSONDecodeError as error:
        raise _NotJsonError(f"{source}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """Composes nodes; plain scalars are told apart as Kubernetes' YAML does."""


_Loader.yaml_implicit_resolvers = {}

_SCALARS = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (
        re.compile(r"^(?:y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$"),
        list("yYnNtTfFoO"),
    ),
    "int": (re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0[0-7]+|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)$"), list("-+0123456789")),
    "float": (re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
}
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)


def _parse_yaml(text: str, source: str) -> Document:
    try:
        loader = _Loader(text)
        _refuse_aliases(text, source)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        if "but found another document" in (error.problem or ""):
            raise UserError(f"{source}{where}: more than one document; give each RLJob a file of its own") from None
        raise UserError(f"{source}{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{source}: not valid YAML: {error.reason}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None
    if node is None:
        raise UserError(f"{source}: is empty")
    builder = _Builder(source)
    return Document(source, builder.build(node, ()), builder.lines)


def _refuse_aliases(text: str, source: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        where = f"{source}:{event.start_mark.line + 1}" if event.start_mark else source
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{where}: the alias *{event.anchor} is refused; write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise UserError(f"{where}: nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Builder:
    """Turns composed nodes into plain values, noting the line of each."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[Location, int] = {}

    def build(self, node: yaml.Node, at: Location) -> Any:
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise UserError(f"{self.source}:{node.start_mark.line + 1}: the tag {node.tag} is refused")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*at, index)) for index, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{self.source}:{line}: a key must be text")
            key = str(key_node.value)
            if key in result:
                raise UserError(f"{self.source}:{line}: the key {key!r} stands twice in one mapping")
            self.lines[(*at, key)] = line
            result[key] = self.build(value_node, (*at, key))
        return result

    def _scalar(self, node: yaml.Node) -> Any:
        text, tag = str(node.value), node.tag.removeprefix("tag:yaml.org,2002:")
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() in ("y", "yes", "true", "on")
        if tag == "int":
            if len(text) > MAX_DIGITS:
                raise UserError(f"{self.source}:{node.start_mark.line + 1}: {_too_long(text)}")
            return _integer(text)
        if tag == "float":
            return float(text)
        if tag == "str":
            return text
        raise UserError(f"{self.source}:{node.start_mark.line + 1}: the tag {node.tag} is refused")


def _too_long(digits: str) -> str:
    return f"the number {digits[:8]}… has {len(digits)} digits; at most {MAX_DIGITS}"


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    unsigned = digits.lstrip("+-")
    if len(unsigned) > 1 and unsigned[0] == "0" and unsigned[1].isdigit():  # YAML 1.1 octal
        return int(digits, 8)
    return int(digits, 0)
