"""The RLJob API: one definition for the CRD, the CLI, the operator and the trainer. Imports pydantic alone."""

from rljob_trainer.config.job import (
    API_VERSION,
    GROUP,
    KIND,
    MAX_NAME_LENGTH,
    PLURAL,
    VERSION,
    RLJob,
    RLJobSpec,
)

__all__ = ["API_VERSION", "GROUP", "KIND", "MAX_NAME_LENGTH", "PLURAL", "VERSION", "RLJob", "RLJobSpec"]
