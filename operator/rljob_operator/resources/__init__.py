"""Builders of everything that the operator creates for a job: pure functions, one module per child."""
