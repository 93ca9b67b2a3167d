"""`rljob run`: the whole job on this machine — prepare, index, retriever and driver as child processes.

Nothing heavy is imported here. Every child is ended when the run ends, however it ends; the driver is asked to commit
first. What was committed is resumed by the next `rljob run` of the same job in the same directory.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rljob_api.contract import environment_variables as variables
from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.job_document import MANIFEST_KEY, document, load_document
from rljob_api.errors import UserError
from rljob_api.rules.arithmetic import generates
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.job_paths import check_data_files
from rljob_trainer.local.processes import Child
from rljob_trainer.local.retriever import LocalRetriever
from rljob_trainer.orchestrator.job_directory import ATTEMPTS, claim, last_attempt, new_incarnation

CODE = "code"
DRIVER_GRACE_SECONDS = 60.0


def run_local(job: RLJob, directory: Path, *, code: Path | None = None, quiet: bool = False) -> int:
    """Run `job` to its end in `directory`; `code` is a folder of the user's modules, put first on the Python path.

    Returns the exit code: 0 done, 1 failed, 2 a user's mistake that only the running job could find, 4 interrupted
    after a commit. Raises UserError for mistakes found before anything started.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with _only_one(directory):
        claim(directory, job, may_resume=False)
        manifest = directory / MANIFEST_KEY
        if _finished(directory, manifest, job):
            if not quiet:
                print(f"{job.metadata.name} is done already, see {directory / 'report.html'}", file=sys.stderr)
            return int(ExitCode.DONE)
        text = json.dumps(document(job, job.metadata.to_api()), indent=1)
        manifest.write_text(text, encoding="utf-8")
        return int(_LocalRun(job, directory, manifest, _environment(job, directory, code), quiet).run())


class _Interrupted(Exception):  # noqa: N818 - a request, not an error
    """SIGINT or SIGTERM while no driver runs."""


class _LocalRun:
    def __init__(self, job: RLJob, directory: Path, manifest: Path, env: dict[str, str], quiet: bool) -> None:
        self._job, self._dir, self._manifest, self._env, self._quiet = job, directory, manifest, env, quiet
        self._retriever: LocalRetriever | None = None
        self._driver: Child | None = None
        self._signals = 0

    def run(self) -> int:
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with contextlib.ExitStack() as stack:
                return self._run(stack)
        except _Interrupted:
            self._say("interrupted before training started")
            return ExitCode.SUSPENDED
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self, stack: contextlib.ExitStack) -> int:
        if self._job.spec.data.prepare is not None:
            limit = float(self._job.spec.data.prepare.timeout_seconds)
            self._say("preparing the data")
            if (code := self._step("prepare", "rljob_trainer.prepare", limit)) != ExitCode.DONE:
                return code
        # The driver would tell as well, but only once the index is built and the retriever up.
        check_data_files(self._job.spec, self._dir, sft_done=_last_commit(self._dir) is not None)
        if self._job.spec.retriever is not None and generates(self._job.spec):
            self._say("building the index and starting the retriever")
            spec = self._job.spec.retriever
            made = LocalRetriever(spec, self._manifest, self._dir, self._env, self._say)
            self._retriever = stack.enter_context(made)
            self._retriever.wait_ready()
            self._env[variables.RETRIEVER_URL] = self._retriever.url
        return self._attempts()

    def _attempts(self) -> int:
        """Like the operator: a failed attempt is followed by another that resumes, while there is progress; so is one
        that learning health has rolled back, without counting as a failure."""
        failures = 0
        while True:
            attempt = last_attempt(self._dir) + 1
            incarnation = new_incarnation(attempt)
            before = _last_commit(self._dir)
            code = self._drive(attempt, incarnation)
            if code == ExitCode.ROLLED_BACK and not self._signals:  # bounded by lifecycle.health.maxRollbacks
                self._say(f"attempt {attempt} was rolled back; attempt {attempt + 1} goes on from the earlier commit")
                continue
            if code == ExitCode.UNHEALTHY:
                return ExitCode.FAILED
            if code in (ExitCode.PAUSED, ExitCode.ROLLED_BACK):
                self._say("paused; `rljob run` resumes")
                return ExitCode.SUSPENDED
            if code != ExitCode.FAILED or self._signals:
                return code
            failures += 1
            if failures > self._job.spec.lifecycle.backoff_limit:
                self._say(f"attempt {attempt} failed; backoffLimit {failures - 1} is used up")
                return code
            if _last_commit(self._dir) == before:
                self._say(f"attempt {attempt} failed without a new commit; not tried again (rljob run resumes)")
                return code
            self._say(f"attempt {attempt} failed; attempt {attempt + 1} resumes from the last commit")

    def _drive(self, attempt: int, incarnation: str) -> int:
        command = [sys.executable, "-m", "rljob_trainer.driver", "--job", str(self._manifest), "--dir", str(self._dir)]
        command += ["--attempt", str(attempt), "--incarnation", incarnation, "--local"]
        if self._quiet:
            command.append("--quiet")
        with Child("driver", command, env=self._env, grace=DRIVER_GRACE_SECONDS) as driver:
            self._driver = driver
            try:
                code = self._wait(driver)
            finally:
                self._driver = None
        ended = ExitCode.known(code)
        return ExitCode.FAILED if ended is None or ended.follows == "Retry" else ended

    def _wait(self, driver: Child) -> int:
        """The driver's exit code; it bounds its own waits. Meanwhile the retriever is looked after."""
        while True:
            try:
                return driver.process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                if self._retriever is not None:
                    self._retriever.look()

    def _step(self, name: str, module: str, limit: float) -> int:
        """Run `python -m module` to its end. Its last words are shown when it fails."""
        log = self._dir / "logs" / f"{name}.log"
        command = [sys.executable, "-m", module, "--job", str(self._manifest), "--dir", str(self._dir)]
        with Child(name, command, env=self._env, log=log) as child:
            try:
                code = child.process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                self._say(f"{name} did not finish within {limit:.0f} s; see {log}")
                return ExitCode.FAILED
        if code != ExitCode.DONE:
            self._say(f"{name} failed (exit code {code}):\n{child.tail()}")
        return code if code in (ExitCode.DONE, ExitCode.USER_ERROR) else ExitCode.FAILED

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._driver is None:
            raise _Interrupted
        if self._signals == 1:
            self._say("stopping after a commit; once more to stop at once")
            self._driver.signal(signal.SIGTERM)
        else:
            self._driver.signal(signal.SIGKILL)

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)


def _environment(job: RLJob, directory: Path, code: Path | None) -> dict[str, str]:
    """What the children see: the user's code first on the path, threads as the manifest says, no idle spinning."""
    folders = []
    if code is not None:
        if not code.is_dir():
            raise UserError(f"--code {code}: not a folder")
        folders.append(str(code.resolve()))
    spec = job.spec.code
    if (spec.config_map or spec.persistent_volume_claim or spec.git or spec.image_path) and code is None:
        raise UserError(
            "spec.code names a source that only a cluster has", hint="give the folder with `rljob run --code DIR`"
        )
    if spec.files:
        folder = directory / CODE
        folder.mkdir(exist_ok=True)
        for name, content in spec.files.items():
            (folder / name).write_text(content, encoding="utf-8")
        folders.append(str(folder))
    env = dict(os.environ)
    inherited = [env["PYTHONPATH"]] if env.get("PYTHONPATH") else []
    env["PYTHONPATH"] = os.pathsep.join([*folders, *inherited])
    if not env["PYTHONPATH"]:
        del env["PYTHONPATH"]
    env["OMP_NUM_THREADS"] = str(job.spec.trainer.threads_per_rank)
    env["OMP_WAIT_POLICY"] = "PASSIVE"
    env["TOKENIZERS_PARALLELISM"] = "false"
    return env


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: two runs at once would overwrite one another's files."""
    with (directory / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"another `rljob run` (process {file.read().strip() or 'unknown'}) works in {directory}",
                hint="wait for it, or give another directory (--dir)",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _finished(directory: Path, manifest: Path, job: RLJob) -> bool:
    """Whether this very job has run to its end here; also when another version has written its manifest."""
    summary = directory / "summary.json"
    if not summary.exists() or not manifest.exists():
        return False
    try:
        there = load_document(manifest)
    except UserError:
        return False
    same = there.spec == job.spec and there.metadata.name == job.metadata.name
    return same and bool(json.loads(summary.read_text(encoding="utf-8"))["state"] == "Succeeded")


def _last_commit(directory: Path) -> Any:
    return max((directory / ATTEMPTS).glob("*/commits/*/manifest.json"), default=None)
