"""Ray actors and their groups: ranks, engines, weights between them, where they are placed."""
