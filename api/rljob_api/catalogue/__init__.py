"""What the product offers by name: engines, backends, estimators, losses, rewards.

Data alone; the trainer imports what an entry names.
"""
