"""Values that a structural schema allows, for hypothesis."""

from typing import Any

from hypothesis import strategies as st

_ANY = st.recursive(st.booleans() | st.integers(-5, 5) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2))


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of this schema; small, so that many are tried."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        low, high = schema.get("minimum", -100), schema.get("maximum", 2**31 - 1)
        return st.integers(low, min(high, max(low, 0) + 40)) | st.integers(low, high)
    if kind == "number":
        return st.floats(
            schema.get("minimum", -1e6),
            schema.get("maximum", 1e6),
            exclude_min=schema.get("exclusiveMinimum", False),
            exclude_max=schema.get("exclusiveMaximum", False),
            allow_nan=False,
        )
    if kind == "string":
        return _strings(schema)
    if kind == "array":
        low = schema.get("minItems", 0)
        return st.lists(values(schema["items"]), min_size=low, max_size=max(low, 2))
    if "properties" in schema:
        required = schema.get("required", [])
        fields = {name: st.deferred(lambda child=child: values(child)) for name, child in schema["properties"].items()}
        return st.fixed_dictionaries(
            {name: fields[name] for name in required},
            optional={name: field for name, field in fields.items() if name not in required},
        )
    inner = values(schema["additionalProperties"]) if "additionalProperties" in schema else _ANY
    return st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), inner, max_size=2)


def _strings(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    low, high = schema.get("minLength", 0), schema.get("maxLength", 100)
    if "pattern" in schema:
        matching = st.from_regex(schema["pattern"], fullmatch=True)
        return matching.filter(lambda text: low <= len(text) <= high and text.isascii() and text.isprintable())
    return st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=low, max_size=min(high, 12))
