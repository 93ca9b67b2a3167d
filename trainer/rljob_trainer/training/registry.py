"""The training backends of the catalogue: a folder each, imported when a job names it."""

from collections.abc import Callable
from pkgutil import resolve_name

from rljob_api.catalogue.backends import BACKENDS
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.training.interface import Backend


def backend_class(name: str) -> Callable[[RLJob, str, int, int], Backend]:
    """The class of a backend; imports that one alone. Raises UserError where a package that it needs is missing."""
    found: Callable[[RLJob, str, int, int], Backend] = resolve_name(BACKENDS[name].implementation)
    return found
