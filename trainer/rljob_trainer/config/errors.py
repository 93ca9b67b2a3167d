"""The one exception that stands for a user's mistake; it is shown as a sentence, never as a traceback."""


class UserError(Exception):
    """A mistake in what the user wrote or asked for. `message` names the field, the value and what would be right."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message
