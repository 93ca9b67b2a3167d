"""The trainer of RLJobs."""

from rljob_trainer.moved import keep_old_paths

keep_old_paths()
