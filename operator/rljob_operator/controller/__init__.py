"""Watch, reconcile, plan, write: the controller."""
