"""A user's mistake keeps its sentence on the way from one process to another."""

import pickle

import pytest
from rljob_api.errors import FieldError, ManifestError, Problem, UserError


@pytest.mark.parametrize(
    "error",
    [
        UserError("spec.model.path: no such folder", hint="give a folder"),
        FieldError("spec.seed", "-1 is negative"),
        ManifestError("job.yaml", [Problem("spec.seed", "-1 is negative", 4)]),
    ],
)
def test_errors_travel(error: UserError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), there.hint) == (type(error), str(error), error.hint)
