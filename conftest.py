"""For all tests: hypothesis judges results, never time; a failing example is printed so that it can be repeated."""

import pytest
from hypothesis import settings

settings.register_profile("rljob", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("rljob")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: left to the end, it would keep one process busy while the others have nothing to do."""
    items.sort(key=lambda item: "test_quickstart_learns" not in item.nodeid)
