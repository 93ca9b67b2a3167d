"""Actors whose methods run when they are called."""

from collections.abc import Callable
from typing import Any


class Method:
    def __init__(self, run: Callable[..., Any]) -> None:
        self.remote = run


class Told:
    """An actor that has every method and passes its name and arguments on."""

    def __init__(self, note: Callable[..., Any]) -> None:
        self._note = note

    def __getattr__(self, call: str) -> Method:
        return Method(lambda *args: self._note(call, *args))
