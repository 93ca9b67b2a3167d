"""Feeds the trackers of `spec.tracking`: each on a thread of its own, so that a slow or broken one costs nothing."""

import importlib.util
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rljob_api.errors import UserError
from rljob_api.v1alpha1.tracking import TrackingSpec

from rljob_trainer.atomic_files import write_file
from rljob_trainer.metrics.trackers import Completion, RunFacts, Tracker

logger = logging.getLogger(__name__)
FILE = "tracking.json"
"""In an attempt's directory: what its trackers need to go on with the same run."""
WAITING = 10_000
"""Calls that may wait for a tracker; what comes when there are more is left out, and told."""
CLOSE_SECONDS = 120.0
STOP_SECONDS = 20.0
"""How long the end waits for trackers: of a job that is done, and of an attempt that was stopped or failed."""
PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow"}


def check_tracking(spec: TrackingSpec) -> None:
    """Raises UserError when a tracker that is asked for cannot work: its package or its key is missing."""
    for name, package in PACKAGES.items():
        if getattr(spec, name) is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"spec.tracking.{name}: the package {package} is not installed",
                hint="install the extra: pip install 'rljob[tracking]', or use an image that has it",
            )
    if spec.wandb is not None and not spec.wandb.offline:
        names = ["WANDB_API_KEY"]
        if spec.wandb.api_key is not None and spec.wandb.api_key.env is not None:
            names.insert(0, spec.wandb.api_key.env)
        if not any(os.environ.get(name) for name in names) and not _logged_in_to_wandb():
            raise UserError(
                f"spec.tracking.wandb: the environment variable {names[0]} is not set",
                hint="set it (on a cluster by spec.tracking.wandb.apiKey), or set spec.tracking.wandb.offline: true",
            )


def make_trackers(spec: TrackingSpec, facts: RunFacts) -> list[Tracker]:
    """The trackers that are asked for. Nothing is imported or sent yet."""
    trackers: list[Tracker] = []
    if spec.wandb is not None:
        from rljob_trainer.metrics.trackers.wandb_tracker import WandbTracker

        trackers.append(WandbTracker(spec.wandb, facts))
    if spec.tensorboard is not None:
        from rljob_trainer.metrics.trackers.tensorboard_tracker import TensorBoardTracker

        trackers.append(TensorBoardTracker(spec.tensorboard, facts))
    if spec.mlflow is not None:
        from rljob_trainer.metrics.trackers.mlflow_tracker import MlflowTracker

        trackers.append(MlflowTracker(spec.mlflow, facts))
    return trackers


def known_runs(job_dir: Path) -> dict[str, str]:
    """What the trackers of earlier attempts left, the latest first."""
    known: dict[str, str] = {}
    for path in sorted((job_dir / "attempts").glob(f"*/{FILE}")):
        known |= json.loads(path.read_text(encoding="utf-8"))
    return known


class Tracking:
    """All trackers as one. No method raises, and none waits for a tracker but `close`, for a bounded time."""

    def __init__(
        self, trackers: Sequence[Tracker], directory: Path, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        """`directory`: the attempt's own. `tell`: shows one line to a person."""
        self._lock = threading.Lock()
        self._started: dict[str, str] = {}
        self._directory, self._tell = directory, tell
        self._lines = [_Line(tracker, self._remember, self._report) for tracker in trackers]

    def log(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Numbers after `step` steps, under `<prefix>/…`; those that are not finite are left out."""
        named = {f"{prefix}/{key}": float(value) for key, value in values.items() if math.isfinite(value)}
        self._each(lambda tracker: tracker.log(step, named))

    def completions(self, step: int, name: str, rows: Sequence[Completion]) -> None:
        """Samples for people."""
        if rows:
            self._each(lambda tracker: tracker.completions(step, name, rows))

    def close(self, succeeded: bool) -> None:
        """Wait until everything is sent, for a bounded time."""
        limit = CLOSE_SECONDS if succeeded else STOP_SECONDS
        deadline = time.monotonic() + limit
        for line in self._lines:
            line.end(succeeded)
        for line in self._lines:
            line.join(deadline - time.monotonic(), limit)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for line in self._lines:
            line.put(call)

    def _remember(self, name: str, identity: str) -> None:
        with self._lock:
            self._started[name] = identity
            write_file(self._directory / FILE, json.dumps(self._started), fsync=False)

    def _report(self, text: str) -> None:
        logger.warning("%s", text)
        self._tell(text)


class _Line:
    """One tracker, its thread, and the calls that wait for it."""

    def __init__(self, tracker: Tracker, remember: Callable[[str, str], None], report: Callable[[str], None]) -> None:
        self._tracker, self._remember, self._report = tracker, remember, report
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(WAITING)
        self._broken = self._overrun = self._succeeded = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{tracker.name}", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Tracker], None]) -> None:
        """Have `call` made after the others."""
        if self._broken:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._overrun:
                self._overrun = True
                self._report(f"{self._tracker.name} is too slow: some numbers do not reach it")

    def end(self, succeeded: bool) -> None:
        """No call follows."""
        self._succeeded = succeeded
        try:
            self._calls.put(None, timeout=1.0)
        except queue.Full:
            self._broken = True

    def join(self, timeout: float, limit: float) -> None:
        """Wait for the end; `limit`: the seconds that the report names when it does not come."""
        self._thread.join(max(timeout, 0.0))
        if self._thread.is_alive() and not self._broken:
            self._report(f"{self._tracker.name} did not take everything within {limit:.0f} s")

    def _work(self) -> None:
        try:
            identity = self._tracker.start()
            if identity is not None:
                self._remember(self._tracker.name, identity)
            while (call := self._calls.get()) is not None:
                call(self._tracker)
            self._tracker.close(self._succeeded)
        except Exception as error:  # a tracker never costs the run: told once, and done without
            self._broken = True
            logger.info("%s failed", self._tracker.name, exc_info=True)
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._report(f"{self._tracker.name} failed and is left out from here on: {first}")


def _logged_in_to_wandb() -> bool:
    """Whether `wandb login` left a key on this machine."""
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
