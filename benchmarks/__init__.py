"""Benchmarks: each module prints JSON lines; `python -m benchmarks` runs them and keeps the lines."""
