"""Prompts, evaluation sets and demonstrations from files, and the step that prepares them. Imports nothing heavy."""
