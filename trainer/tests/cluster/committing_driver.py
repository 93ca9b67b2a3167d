"""A driver process whose loop does nothing but commit and report; lease, reports, commits and exit codes are the real
ones. `committing_driver.py TOKEN_FILE CA_FILE` and the driver's own arguments."""

import argparse
import sys
import time
import types
from typing import Any

from kubernetes.config import incluster_config
from rljob_trainer import driver
from rljob_trainer.checkpoint import CommitWriter
from rljob_trainer.cluster.progress import ProgressReporter
from rljob_trainer.orchestrator.stop import StopFlag


def commit_on_and_on(
    job: Any, options: argparse.Namespace, stop: StopFlag, progress: ProgressReporter, *unused: Any
) -> None:
    for step in range(1, 100_000):
        if not stop.may_write():
            stop.check()
        with CommitWriter(options.dir, options.incarnation, step=step, policy_version=step) as writer:
            made = writer.commit({"step": step}, {})
        progress.update(transition=True, step=step, totalSteps=100_000, lastCommit={"name": made.name, "step": step})
        stop.check()
        time.sleep(0.05)


incluster_config.SERVICE_TOKEN_FILENAME, incluster_config.SERVICE_CERT_FILENAME = sys.argv[1:3]
loop = types.ModuleType("rljob_trainer.orchestrator.setup")
loop.run_job = commit_on_and_on  # type: ignore[attr-defined]
sys.modules[loop.__name__] = loop
sys.exit(driver.main(sys.argv[3:]))
