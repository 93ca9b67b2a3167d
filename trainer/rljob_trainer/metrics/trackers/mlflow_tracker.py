"""MLflow: a server, or a folder of files."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rljob_api.v1alpha1.tracking import MlflowSpec

from rljob_trainer.metrics.trackers.base import COLUMNS, Completion, RunFacts, as_row

TOKEN = "MLFLOW_TRACKING_TOKEN"
REQUEST_SECONDS, REQUEST_RETRIES = "30", "3"
PARAMETER_LENGTH = 500
AT_ONCE = 100
"""MLflow's limits: characters of a parameter, parameters of one call."""


class MlflowTracker:
    """One MLflow run for all attempts. A metric's step is the job's."""

    name = "mlflow"

    def __init__(self, spec: MlflowSpec, facts: RunFacts) -> None:
        self._spec, self._facts = spec, facts
        self._client: Any = None
        self._run_id = ""

    def start(self) -> str | None:
        """See Tracker."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_SECONDS)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", REQUEST_RETRIES)
        token = self._spec.token
        if token is not None and token.env is not None and token.env in os.environ:
            os.environ.setdefault(TOKEN, os.environ[token.env])
        uri = self._uri()
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # asked for by the manifest
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        known = self._facts.known.get(self.name)
        if known is not None:
            self._run_id = known
            self._client.update_run(known, status="RUNNING")
            return known
        experiment = self._client.get_experiment_by_name(self._spec.experiment)
        identity = experiment.experiment_id if experiment else self._client.create_experiment(self._spec.experiment)
        self._run_id = self._client.create_run(identity, run_name=self._facts.job).info.run_id
        self._log_config()
        return self._run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_name(key), value, now, step) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def completions(self, step: int, name: str, rows: Sequence[Completion]) -> None:
        """See Tracker. A JSON artifact in the form of MLflow's tables."""
        table = {"columns": list(COLUMNS), "data": [as_row(row) for row in rows]}
        self._client.log_dict(self._run_id, table, f"completions/{_name(name).replace('/', '-')}-{step:08d}.json")

    def close(self, succeeded: bool) -> None:
        """See Tracker."""
        if self._client is not None and self._run_id:
            self._client.set_terminated(self._run_id, status="FINISHED" if succeeded else "KILLED")

    def _uri(self) -> str:
        """A relative folder (`file:mlruns`) lies beneath the job's directory."""
        uri = self._spec.tracking_uri
        if not uri.startswith("file:"):
            return uri
        return (self._facts.job_dir / Path(uri.removeprefix("file:").removeprefix("//"))).resolve().as_uri()

    def _log_config(self) -> None:
        from mlflow.entities import Param

        parameters = [Param(_name(key), str(value)[:PARAMETER_LENGTH]) for key, value in self._facts.config.items()]
        for start in range(0, len(parameters), AT_ONCE):
            self._client.log_batch(self._run_id, params=parameters[start : start + AT_ONCE])


def _name(key: str) -> str:
    """MLflow's names hold letters, digits and `_ - . : /` and spaces: `pass@4` becomes `pass_at_4`."""
    return "".join(c if c.isalnum() or c in "_-.:/ " else "_at_" if c == "@" else "_" for c in key)
