"""The RLJob API: one definition for the CRD, the CLI, the operator and the trainer. Imports pydantic alone.

`v1alpha1.job` has the whole job; nothing is imported here, so that a process which needs a part pays for that part.
"""
