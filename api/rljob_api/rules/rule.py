"""A rule across fields: the condition, and what is said where it does not hold, for the CRD and for Python."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rljob_api.errors import FieldError, Problem
from rljob_api.rules.expression import Expression, all_differ, field, getters
from rljob_api.v1alpha1.job import RLJobSpec


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A message with values of the object that a rule is about, in the place of each `{}`."""

    template: str
    values: tuple[Expression, ...]


def text(template: str, *values: Expression) -> Text:
    """`text("{} is above {}", field("low"), field("high"))`: a message with values."""
    return Text(template, values)


Message = str | Text | Callable[[Any], str]
"""What is said: words, words with values, or, where CEL says less, a function of the object that the rule is about."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A rule as the CRD has it."""

    at: str
    """Dotted path of the object, `[]` for the elements of a list; empty for the root."""
    rule: str
    """The condition in CEL."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A condition that must hold of an object of the spec.

    It sits on the nearest object that holds all the fields it reads, never on the root, so that status stays writable
    after an upgrade of the CRD.
    """

    at: str
    """Dotted path of the object, from `spec` on; `[]` stands for each element of a list. Absent, it breaks no rule."""
    must: Expression
    """What must hold of the object,"""
    says: Message
    """what is said otherwise,"""
    field_path: str = ""
    """and of which field, relative to `at`."""
    when: Expression | None = None
    """Which objects the rule is for; all by default."""
    required: bool = False
    """The error is a missing value."""
    python_when: Expression | None = None
    """A condition on the spec under which alone Python applies the rule: a part that the job does not use is not
    judged, nor a size that follows from one that is refused. Admission judges each object by itself."""
    admission: bool = True
    """Whether the CRD has the rule too. One that it lacks is reported by the operator, as `Accepted=False`."""
    admission_says: str = ""
    """What admission says, where CEL can say less."""

    def holds(self) -> Expression:
        """The whole condition, in both languages."""
        return self.must if self.when is None else self.when.implies(self.must)

    def problems(self, spec: RLJobSpec, path: str, owner: Any) -> Iterator[Problem]:
        """What is wrong with `owner`, the object that lies at `path`."""
        if self.python_when is not None and not self.python_when.value(spec):
            return
        if (self.when is None or self.when.value(owner)) and not self.must.value(owner):
            yield Problem(_joined(path, self.field_path), text_of(self.says, owner))

    def require(self, spec: RLJobSpec) -> None:
        """Raises FieldError unless a rule on the spec as a whole holds, also of a job that it is not for."""
        if not self.must.value(spec):
            raise FieldError(_joined("spec", self.field_path), text_of(self.says, spec))

    def validation(self) -> Validation | None:
        """The rule as the CRD has it; None where Python alone does."""
        if not self.admission:
            return None
        message = self.admission_says or _template(self.says)
        return Validation(self.at, self.holds().cel, message, self.field_path, self.required)


def _name(of: str) -> Expression:
    return field("name", of)


@dataclass(frozen=True, slots=True, eq=False)
class Unique:
    """The elements of a list have keys that differ."""

    at: str
    """Dotted path of the object that has the list, from `spec` on."""
    field_path: str
    """The list, relative to `at`."""
    advice: str = "names are unique"
    """What would be right."""
    key: Callable[[str], Expression] = _name
    """The key of an element, whose name in CEL it is given."""
    admission_says: str = ""
    """What admission says, in fewer words: CEL does not count. Empty where Python alone has the rule, such as for
    lists that the schema itself declares to be maps."""

    def holds(self) -> Expression:
        """The whole condition, in both languages."""
        return all_differ(self.field_path, self.key)

    def problems(self, spec: RLJobSpec, path: str, owner: Any) -> Iterator[Problem]:
        """One problem for each key of `owner`, the object at `path`, that stands more than once."""
        key = self.key("self").value
        for name, count in Counter(map(key, field(self.field_path).value(owner))).items():
            if count > 1:
                yield Problem(_joined(path, self.field_path), f"{name} stands {count} times; {self.advice}")

    def validation(self) -> Validation | None:
        """The rule as the CRD has it; None where Python alone does."""
        if not self.admission_says:
            return None
        return Validation(self.at, self.holds().cel, self.admission_says, self.field_path)


@dataclass(frozen=True, slots=True, eq=False)
class PythonRule:
    """What CEL cannot say or afford, or not in one condition, as a function of the spec."""

    check: Callable[[RLJobSpec], Iterator[Problem]]
    at: str = "spec"

    def problems(self, spec: RLJobSpec, path: str, owner: Any) -> Iterator[Problem]:
        """What is wrong with the spec."""
        return self.check(spec)

    def validation(self) -> None:
        """The CRD does not have it."""


SpecRule = Rule | Unique | PythonRule


def objects(spec: RLJobSpec, at: str) -> list[tuple[str, Any]]:
    """The objects at `at`, such as `spec.reward.functions[]`, each after its path, as in `spec.reward.functions[0]`."""
    found: list[tuple[str, Any]] = [("spec", spec)]
    for part in at.split(".")[1:]:
        name = part.removesuffix("[]")
        (get,) = getters(name)
        found = [(f"{path}.{name}", get(owner)) for path, owner in found]
        if part.endswith("[]"):
            found = [(f"{path}[{index}]", element) for path, owner in found for index, element in enumerate(owner)]
        found = [(path, owner) for path, owner in found if owner is not None]
    return found


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if name else path


def text_of(message: Message, owner: Any) -> str:
    """The message of an object; numbers with a fraction as `%g` prints them."""
    if isinstance(message, str):
        return message
    if isinstance(message, Text):
        values = [value.value(owner) for value in message.values]
        return message.template.format(*(f"{value:g}" if isinstance(value, float) else value for value in values))
    return message(owner)


def _template(message: Message) -> str:
    """The message with `{expression}` in the place of values. Raises TypeError for a function."""
    if isinstance(message, str):
        return message
    if isinstance(message, Text):
        return message.template.format(*(f"{{{value.cel}}}" for value in message.values))
    raise TypeError("a message that is a function needs admission_says beside it")
