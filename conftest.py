"""For all tests: no cluster of the user's is reached, and hypothesis judges results, never time (a failing example is
printed so that it can be repeated)."""

import pytest
from hypothesis import settings

from e2e import which_cluster

which_cluster.shut_out()
settings.register_profile("rljob", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("rljob")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `first` in front, the longest of their kind: left to the end, one would keep a process busy while
    the others have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
