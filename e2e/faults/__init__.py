"""Faults between the operator and a real apiserver: killed at every write, bad answers, silent watches, bad input."""
