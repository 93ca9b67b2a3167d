"""What a job does next: one file per decision, each a pure function."""
