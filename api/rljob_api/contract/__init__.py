"""What operator, driver and CLI say to one another."""
