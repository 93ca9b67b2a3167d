"""The driver in a copy of a warm process, with Ray workers that are such copies as well."""

from rljob_trainer import driver

from trainer.tests.warm_ray import serve_workers


def main(arguments: list[str]) -> int:
    """`driver.main`; returns its exit code."""
    serve_workers(driver.parse(arguments).dir)
    return driver.main(arguments)
