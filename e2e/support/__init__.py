"""What the tests against a real cluster share."""
