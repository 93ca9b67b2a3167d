"""RLJob."""
