"""Each backend's entry in the catalogue leads to code."""

from importlib.util import find_spec

import pytest
from rljob_api.catalogue.backends import BACKENDS


@pytest.mark.parametrize("name", list(BACKENDS))
def test_an_entry_names_a_module_that_is_there(name: str) -> None:
    module, _, of_rank = BACKENDS[name].implementation.partition(":")
    assert of_rank
    assert find_spec(module) is not None
