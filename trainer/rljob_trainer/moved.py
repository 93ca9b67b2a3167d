"""Modules that users name by an older import path: they import, with a warning that says where to.

Old path → new path; a package takes its modules along.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "rljob_trainer.convert": "rljob_trainer.export",
    "rljob_trainer.rollout.types": "rljob.types",
}


def new_path(name: str) -> str | None:
    """Where the module `name` lies now; None when it has not moved."""
    for old, new in MOVED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None


class _Alias(Loader):
    """The module of another name, the same object: what is imported by both paths is one class."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module under its new name."""
        # Python shows no DeprecationWarning of imported modules, and a user's functions are always in one.
        warnings.warn(f"{spec.name} has moved: import {self._target}", FutureWarning, stacklevel=2)
        module = importlib.import_module(self._target)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; the import system has given it the alias' spec."""
        module.__spec__ = self._spec


class _Finder(MetaPathFinder):
    """Asked first: the new package's folder would give its modules once more under the old path, as other objects."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = new_path(fullname)
        return None if new is None else spec_from_loader(fullname, _Alias(new))


def keep_old_paths() -> None:
    """Make the old import paths work in this process."""
    if not any(type(finder) is _Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
