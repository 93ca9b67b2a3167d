"""Tests of the operator and the CLI.

A package, so that pytest calls these modules `tests.…`: without this file it would call them `operator.tests.…` and
put a namespace package in the place of the standard library's `operator`.
"""
