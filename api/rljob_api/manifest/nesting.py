"""How deep a manifest may be nested: deeper ones are beyond what parsers and encoders can do."""

from typing import Any

MAX_DEPTH = 64
"""Levels of objects and arrays."""


def too_deep(value: Any, depth: int = MAX_DEPTH) -> tuple[str, ...] | None:
    """The path of the first dict or list that is more than `depth` levels deep; None when there is none."""
    if not isinstance(value, dict | list):
        return None
    if depth == 0:
        return ()
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if (path := too_deep(inner, depth - 1)) is not None:
            return (str(key), *path)
    return None
