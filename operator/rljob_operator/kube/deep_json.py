"""JSON that is nested deeper than anything can handle, made shallow.

The apiserver takes 10,000 levels in a field without a schema. Parsers and encoders here give up at 254 to 1,500, and a
listing that cannot be read would stop every job of the cluster for one job's sake. What is too deep is cut off; a job
of which anything was cut is refused (`plan.accept`), by the limit that the command line has for a manifest.
"""

import re
from typing import Any

import orjson
from rljob_api.manifest.nesting import MAX_DEPTH

_CUT = "nested too deeply"
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
WRAPPED = 8
"""Levels that a listing or an event puts around an object, and some."""


def loads(text: bytes | str) -> Any:
    """Parse JSON of any depth. Raises orjson.JSONDecodeError for what is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        data = text.encode() if isinstance(text, str) else text
        shallow = cut(data, MAX_DEPTH + WRAPPED)
        if shallow == data:
            raise
        return orjson.loads(shallow)


def cut(text: bytes, depth: int) -> bytes:
    """JSON text with a string in place of each object and array that is more than `depth` levels deep."""
    result, level, kept_to = [], 0, 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case b"{" | b"[":
                level += 1
                if level == depth + 1:
                    result += [text[kept_to : token.start()], orjson.dumps(_CUT)]
            case b"}" | b"]":
                if level == depth + 1:
                    kept_to = token.end()
                level -= 1
    return b"".join(result) + text[kept_to:] if level == 0 else text


def trimmed(value: Any, depth: int = MAX_DEPTH + 1) -> Any:
    """A value with a string in place of each dict and list that is more than `depth` levels deep."""
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        return _CUT
    if isinstance(value, dict):
        return {key: trimmed(inner, depth - 1) for key, inner in value.items()}
    return [trimmed(inner, depth - 1) for inner in value]
