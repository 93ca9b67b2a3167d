"""What was observed of a job: objects, conditions, reasons, diagnoses."""
