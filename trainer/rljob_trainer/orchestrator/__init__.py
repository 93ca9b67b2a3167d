"""The training loop: data source → rollout → reward → advantages → train → sync weights → commit → evaluate."""
