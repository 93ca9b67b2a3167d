"""Numbers of a run: JSONL beside the commits, Prometheus endpoints, and what a person sees on the terminal."""
