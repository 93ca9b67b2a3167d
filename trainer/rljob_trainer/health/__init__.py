"""Learning health: which conditions hold, since when, and what is to be done. Pure; imports neither Ray nor torch.

docs/learning-health.md has the formulas and what each policy does.
"""
