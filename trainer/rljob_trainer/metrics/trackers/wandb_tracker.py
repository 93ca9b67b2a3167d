"""Weights & Biases. Offline, the run lies in the attempt's directory for `wandb sync`."""

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from rljob_api.v1alpha1.tracking import WandbSpec

from rljob_trainer.metrics.trackers.base import COLUMNS, Completion, RunFacts, as_row

API_KEY = "WANDB_API_KEY"
INIT_SECONDS = 90


class WandbTracker:
    """A run whose id the attempts share. Its x-axis is the metric `step`: steps trained twice do not collide."""

    name = "wandb"

    def __init__(self, spec: WandbSpec, facts: RunFacts) -> None:
        self._spec, self._facts = spec, facts
        self._run: Any = None

    def start(self) -> str | None:
        """See Tracker."""
        import wandb

        spec, facts = self._spec, self._facts
        identity = facts.known.get(self.name) or secrets.token_hex(6)
        if spec.api_key is not None and spec.api_key.env is not None and spec.api_key.env in os.environ:
            os.environ.setdefault(API_KEY, os.environ[spec.api_key.env])
        self._run = wandb.init(
            project=spec.project,
            entity=spec.entity,
            name=spec.run_name or facts.job,
            id=identity,
            resume="allow",
            mode="offline" if spec.offline else "online",
            dir=str(facts.directory),
            config=dict(facts.config),
            allow_val_change=True,
            settings=wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off", x_disable_stats=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return identity

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._run.log({**values, "step": step})

    def completions(self, step: int, name: str, rows: Sequence[Completion]) -> None:
        """See Tracker."""
        import wandb

        table = wandb.Table(columns=list(COLUMNS), data=[as_row(row) for row in rows])
        self._run.log({f"completions/{name}": table, "step": step})

    def close(self, succeeded: bool) -> None:
        """See Tracker."""
        if self._run is not None:
            self._run.finish(exit_code=0 if succeeded else 1)
