"""Moved to `rljob`, which users' own modules import."""

import warnings

from rljob.types import *  # noqa: F403

warnings.warn("rljob_trainer.rollout.types has moved: import from rljob", DeprecationWarning, stacklevel=2)
