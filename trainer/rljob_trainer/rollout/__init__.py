"""Generation: engines, sessions, generate functions."""
