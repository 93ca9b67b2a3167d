#!/usr/bin/env python3
"""`make test`: every test in stages, what fails soonest first, and a table of what each took.

PART=quick|slow|faults|apiserver|kueue|helm|images|jobs runs one part, or several (PART="quick helm"). What the parts
need and the machine lacks is built and downloaded first. Stages whose clusters are control planes alone run side by
side, each on one of its own. No cluster of the user's is touched: KUBECONFIG leads nowhere while tests run.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[1]
PYTHON = str(ROOT / ".venv/bin/python")
PYTEST = (PYTHON, "-m", "pytest", "-q")
LOCAL = "not cluster and not helm and not gpu and not nightly"
PLAYED = (
    "api/tests", "operator/tests", "cli/tests", "trainer/tests/cluster", "e2e/tests/test_bad_manifests.py",
    "e2e/tests/test_cli_on_cluster.py", "e2e/tests/test_rbac.py",
)  # fmt: skip
"""Tests that play KubeRay themselves, and so need a control plane on which nobody else acts."""
WHOLE_JOBS = ("e2e", "--ignore=e2e/faults", "--ignore=e2e/kueue", *(f"--ignore={path}" for path in PLAYED[4:]))
WORKERS = os.environ.get("RLJOB_TEST_JOBS", "2")
"""Whole jobs at once: each waits about as much as it computes."""
PATIENCE = "3"
"""How much longer the limits of whole jobs are than for one job on a fast machine (`e2e.support.wait`)."""
HEARTBEAT_SECONDS = 60.0
Command = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """Commands that run one after the other; the first that fails ends them."""

    name: str
    what: str
    commands: tuple[Command, ...]
    limit: float
    """Seconds for all of them."""
    cluster: str | None = None
    """RLJOB_CLUSTER_INDEX of the cluster that it brings up; None: none, or the default one."""


def _pytest(*words: str) -> Command:
    return (*PYTEST, *words)


STAGES = (
    Stage("lint", "style and imports", (
        (PYTHON, "-m", "ruff", "check", "."),
        (PYTHON, "-m", "ruff", "format", "--check", "."),
        (".venv/bin/lint-imports",),
    ), 300),
    Stage("types", "mypy", ((PYTHON, "-m", "mypy"),), 900),
    Stage("quick", "tests of a few seconds", (
        _pytest("-n", "2", "--dist", "loadfile", "-m", f"not slow and {LOCAL}"),
    ), 1200),
    # They start Ray and train. Two files at a time (a start-up waits more than it computes), the longest first.
    Stage("slow", "tests that start Ray and train", (
        _pytest("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-m", f"slow and {LOCAL}", "--durations=15"),
    ), 2400),
    Stage("faults", "faults between the operator and the apiserver", (
        _pytest("-m", "cluster and not nightly", "e2e/faults", "--durations=5"),
    ), 1800, "61"),
    Stage("apiserver", "the API and the operator on a real apiserver", (
        _pytest("-m", "cluster and not nightly", *PLAYED, "--durations=5"),
    ), 1800, "62"),
    Stage("kueue", "jobs in a queue of Kueue, on simulated nodes", (
        _pytest("-m", "cluster and not nightly", "e2e/kueue", "--durations=5"),
    ), 1200, "62"),
    Stage("helm", "what the charts render", (_pytest("-m", "helm and not cluster and not nightly"),), 900),
    Stage("images", "images on the node of a real cluster", (
        (PYTHON, "-m", "e2e.cluster", "up"), (PYTHON, "-m", "images.build", "--load"),
        _pytest("-m", "cluster and not nightly", "e2e/tests/test_rljob_images.py", "e2e/cluster"),
    ), 1800),
    # Side by side in namespaces of their own; what strikes the operator, KubeRay, Helm or the node comes alone.
    Stage("jobs", "whole jobs on a real cluster", (
        (PYTHON, "-m", "e2e.cluster", "up"), (PYTHON, "-m", "images.build", "--load"),
        _pytest("-v", "-n", WORKERS, "--dist", "worksteal", "-m", "cluster and not serial and not nightly", *WHOLE_JOBS,
                "--ignore=e2e/tests/test_rljob_images.py", "--ignore=e2e/cluster", "--durations=30"),
        _pytest("-v", "-m", "cluster and serial and not nightly", *WHOLE_JOBS, "--durations=10"),
    ), 4200),
)  # fmt: skip
NIGHTLY = (
    Stage("nightly", "tests too long for every change", (
        _pytest("-v", "-m", "nightly and not cluster and not gpu"),
    ), 5400),
    # Each process from nothing, as users start it; `make test` starts copies of a warm one.
    Stage("cold", "tests that start Ray and train, from cold processes", (
        ("env", "RLJOB_TESTS_COLD=1", *_pytest("-n", "2", "--dist", "loadfile", "-m", f"slow and {LOCAL}")),
    ), 5400),
    Stage("kills", "the operator killed at every write", (("scripts/faults.sh",),), 5400),
    Stage("chaos", "what a job relies on, killed while it trains", (
        (PYTHON, "-m", "e2e.cluster", "up"), (PYTHON, "-m", "images.build", "--load"),
        _pytest("-v", "-m", "cluster and nightly", "e2e/tests"),
    ), 7200),
)  # fmt: skip
PARTS = tuple(stage.name for stage in STAGES if stage.name not in ("lint", "types"))
SIDE_BY_SIDE = (("faults",), ("apiserver", "kueue"))
"""Stages of each tuple one after the other, the tuples at the same time."""


@dataclass
class Report:
    """What each stage took, in the order of their ends."""

    lines: list[tuple[str, float, str]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a stage has failed."""
        return any(outcome != "passed" for _, _, outcome in self.lines)

    def table(self, total: float) -> str:
        """The table of stages with seconds."""
        rows = [f"{name:<12}{seconds:>7.0f} s  {outcome}" for name, seconds, outcome in self.lines]
        return "\n".join(["stage       seconds", *rows, f"{'total':<12}{total:>7.0f} s"])


def chosen(part: str) -> list[Stage]:
    """The stages of PART; all of them for an empty one. Raises SystemExit for a part that there is not."""
    wanted = part.replace(",", " ").split()
    if unknown := [name for name in wanted if name not in PARTS]:
        raise SystemExit(f"PART={part}: there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return [stage for stage in STAGES if stage.name in wanted or not wanted]


def environment(stage: Stage) -> dict[str, str]:
    """What a stage's commands see: no cluster of the user's, and a cluster index of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RLJOB_E2E_")}
    env |= {"KUBECONFIG": str(ROOT / "e2e/no-cluster.kubeconfig.yaml")}
    if stage.name in ("images", "jobs", "chaos"):
        env |= {"RLJOB_E2E_PATIENCE": PATIENCE}
    return env | ({"RLJOB_CLUSTER_INDEX": stage.cluster} if stage.cluster else {})


_RUNNING: set[subprocess.Popen[bytes]] = set()


def run(stage: Stage, output: BinaryIO | None = None) -> str:
    """Run a stage's commands, their output to a file (None: to ours); "passed", or what went wrong."""
    end = time.monotonic() + stage.limit
    for command in stage.commands:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(stage), stdout=output, stderr=output and subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        _RUNNING.add(process)
        try:
            code = process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(process)
            return f"not done within {stage.limit:.0f} s"
        finally:
            if process.returncode is not None:
                _RUNNING.discard(process)
        if code:
            return f"FAILED (exit code {code}): {shlex.join(command)[:100]}"
    return "passed"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it has started, first politely: pytest takes its clusters away."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def run_alone(stage: Stage, report: Report, begun: float) -> None:
    """A stage whose output is seen as it comes."""
    print(f"\n=== {stage.name}: {stage.what} ({time.monotonic() - begun:.0f} s so far)", flush=True)
    started = time.monotonic()
    outcome = run(stage)
    report.lines.append((stage.name, time.monotonic() - started, outcome))


def run_side_by_side(lanes: Sequence[Sequence[Stage]], report: Report, begun: float) -> None:
    """Stages of each lane one after the other, the lanes at the same time; each's output once it is done."""
    names = ", ".join(stage.name for lane in lanes for stage in lane)
    print(f"\n=== side by side: {names} ({time.monotonic() - begun:.0f} s so far)", flush=True)
    running: dict[str, float] = {}
    printing = threading.Lock()

    def drive(lane: Sequence[Stage]) -> None:
        for stage in lane:
            running[stage.name] = started = time.monotonic()
            with tempfile.TemporaryFile() as output:
                outcome = run(stage, output)
                output.seek(0)
                text = output.read().decode(errors="replace")
            del running[stage.name]
            with printing:
                report.lines.append((stage.name, time.monotonic() - started, outcome))
                print(f"\n=== {stage.name}: {stage.what}\n{text}", flush=True)
            if outcome != "passed":
                return

    threads = [threading.Thread(target=drive, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(HEARTBEAT_SECONDS)
            if thread.is_alive():
                still = ", ".join(f"{name} {time.monotonic() - since:.0f} s" for name, since in running.items())
                print(f"... {still}", flush=True)


def main(part: str, nightly: bool = False) -> int:
    """Run the stages of a part; the exit code."""
    stages = list(NIGHTLY) if nightly else chosen(part)
    report, begun = Report(), time.monotonic()
    was_up = _up() if (needs_node := {"images", "jobs", "chaos"} & {stage.name for stage in stages}) else True
    needs = [stage.name for stage in stages if stage.name in PARTS] or ["jobs"]
    prepare = Stage("prepare", "what the tests need, built and downloaded", (
        (PYTHON, "-m", "e2e.prepare", *needs),
    ), 7200)  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run_alone(prepare, report, begun)
        for group in _grouped(stages):
            if report.failed:
                break
            if len(group) > 1:
                run_side_by_side(group, report, begun)
            else:
                run_alone(group[0][0], report, begun)
    except BaseException:
        for process in list(_RUNNING):  # each is in a session of its own: Ctrl-C did not reach it
            _end(process)
        raise
    finally:
        if needs_node and not was_up:
            subprocess.run([PYTHON, "-m", "e2e.cluster", "down"], cwd=ROOT, timeout=300, check=False)
        print(f"\n{report.table(time.monotonic() - begun)}", flush=True)
    return 1 if report.failed else 0


def _grouped(stages: Sequence[Stage]) -> list[list[list[Stage]]]:
    """Groups of lanes, in order: one lane of one stage, or those that go side by side."""
    groups: list[list[list[Stage]]] = []
    by_name = {stage.name: stage for stage in stages}
    lanes = [[by_name[name] for name in lane if name in by_name] for lane in SIDE_BY_SIDE]
    lanes = [lane for lane in lanes if lane]
    for stage in stages:
        if not any(stage in lane for lane in lanes):
            groups.append([[stage]])
        elif lanes not in groups:
            groups.append(lanes)
    return groups


def _up() -> bool:
    """Whether the cluster with a node is up already: then it stays."""
    status = [PYTHON, "-m", "e2e.cluster", "status"]
    return subprocess.run(status, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(os.environ.get("PART", ""), nightly="--nightly" in sys.argv[1:]))
