"""For all tests: hypothesis judges results, never time; a failing example is printed so that it can be repeated."""

from hypothesis import settings

settings.register_profile("rljob", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("rljob")
