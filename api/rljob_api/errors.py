"""Mistakes of a user, shown as sentences and never as tracebacks."""

from dataclasses import dataclass


class UserError(Exception):
    """A mistake in what the user wrote or asked for. `message` names the field, the value and what would be right."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one field of a manifest."""

    path: str
    """The field as a user writes it: `spec.rollout.batchSize`, `spec.reward.functions[0].url`."""
    message: str
    """What is wrong, with the values, and what would be right."""
    line: int | None = None
    """Line of the manifest, from 1, where known."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class FieldError(UserError):
    """A mistake in one field."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.problem = Problem(path, message)

    def __reduce__(self) -> tuple[type["FieldError"], tuple[str, str]]:
        # Errors travel between Ray's processes, which make them anew from these arguments.
        return FieldError, (self.problem.path, self.problem.message)


class ManifestError(UserError):
    """A manifest with one or more problems, one line each: `job.yaml:12: spec.rollout.batchSze: unknown field`."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        lines = [f"{source}{f':{problem.line}' if problem.line else ''}: {problem}" for problem in problems]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type["ManifestError"], tuple[str, list[Problem]]]:
        return ManifestError, (self.source, self.problems)


def missing_package(error: ModuleNotFoundError, who: str) -> UserError:
    """The wrong environment as a user's mistake: `who` runs where a package is missing."""
    return UserError(
        f"{who} needs the Python package {error.name or str(error)!r}, which is not installed where it runs",
        hint="name an image that has it in spec.images, or give it in spec.code; locally install rljob[trainer]",
    )
