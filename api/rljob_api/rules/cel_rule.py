"""One CEL rule of the CRD, and its message with numbers in it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: where it sits, the condition that must hold, and what to say otherwise."""

    at: str
    """Dotted path of the object, `[]` for the elements of a list; empty for the root."""
    rule: str
    message: str
    """Text; `{expression}` stands for the value of a CEL expression."""
    field_path: str = ""
    """Field that is named in the error, relative to `at`."""
    required: bool = False
    """The error is a missing value."""

    def to_schema(self) -> dict[str, str]:
        """The rule as `x-kubernetes-validations` has it."""
        schema = {"rule": self.rule}
        if "{" in self.message:
            schema["messageExpression"] = formatted(self.message)
            schema["message"] = re.sub(r"\{[^}]*\}", "…", self.message)
        else:
            schema["message"] = self.message
        if self.field_path:
            schema["fieldPath"] = f".{self.field_path}"
        if self.required:
            schema["reason"] = "FieldValueRequired"
        return schema


def formatted(template: str) -> str:
    """`"a {x} b"` as the CEL expression `"a %s b".format([x])`.

    `format` rather than `+`: the apiserver takes the length of `string(x)` as unbounded and refuses the cost.
    """
    parts = re.split(r"\{([^}]*)\}", template)
    text = "%s".join(part.replace("%", "%%") for part in parts[::2])
    return f'"{text}".format([{", ".join(parts[1::2])}])'
