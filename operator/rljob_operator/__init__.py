"""The operator of RLJobs."""
