"""Puts a run together: Ray, data, workers, recorder; trains; writes the report."""

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import ray
from rljob_api.rules.arithmetic import engine_count, generates, shares_gpus, total_gpus, trains, world_size
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.algorithms.custom import check_algorithm_hooks
from rljob_trainer.checkpoint import Commit
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.cluster.progress import ProgressReporter
from rljob_trainer.health.rollback import rollbacks, standing
from rljob_trainer.metrics.display import make_display
from rljob_trainer.metrics.exporter import serve
from rljob_trainer.metrics.goodput import devices_of
from rljob_trainer.metrics.jsonl import read_history
from rljob_trainer.metrics.memory import PeakMemory
from rljob_trainer.metrics.trackers import RunFacts
from rljob_trainer.metrics.tracking import Tracking, check_tracking, known_runs, make_trackers
from rljob_trainer.orchestrator.checkpointer import choose_commit
from rljob_trainer.orchestrator.context import JobData, RunContext
from rljob_trainer.orchestrator.job_directory import Incarnation, claim, learning_fields
from rljob_trainer.orchestrator.recorder import Recorder
from rljob_trainer.orchestrator.run import Run
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.report.summary import print_lines, summarize, terminal_lines
from rljob_trainer.report.write import write_report
from rljob_trainer.rewards.functions import check_functions
from rljob_trainer.rollout.dynamic_sampling import make_filter
from rljob_trainer.rollout.generate.custom import CustomGenerate
from rljob_trainer.weights import weights_digest
from rljob_trainer.workers.elasticity import ScaleWish
from rljob_trainer.workers.placement import (
    ROLLOUT_RESOURCE,
    TRAINER_RESOURCE,
    join_ray,
    start_local_ray,
    wait_for_resources,
)

logger = logging.getLogger(__name__)
PLACEMENT_SECONDS = 1800.0


def run_job(
    job: RLJob,
    options: argparse.Namespace,
    stop: StopFlag,
    progress: ProgressReporter,
    stack: ExitStack,
    retriever_url: str | None,
    scale: ScaleWish = lambda: None,
) -> None:
    """The whole run. Raises what ends it early; see `driver` for what becomes of that."""
    incarnation = Incarnation(options.dir, options.incarnation, options.local)
    job_dir = incarnation.job_dir
    if not options.local:
        may_resume = options.attempt > 1 or options.resume_from not in (None, "none")
        claim(job_dir, job, may_resume=may_resume, incarnation=incarnation.name)
    commit = choose_commit(job_dir, options.resume_from)
    records = rollbacks(job_dir)
    if (back := standing(commit, records)) is not None:
        commit = choose_commit(job_dir, back.target or "none")
    check_hooks(job)
    check_tracking(job.spec.tracking)
    sft_done = commit is not None and LoopState.from_json(commit.loop_state()).stage != "SFT"
    data = JobData(job, job_dir, sft_done=sft_done, rollbacks=len(records))
    memory = PeakMemory(os.getppid()) if options.local else None
    _start_ray(job, options.local, stop, stack)
    display = make_display(job.metadata.name, quiet=options.quiet)
    tracking = _tracking(job, incarnation, commit, display.message)
    total = data.total_steps(job)
    devices = devices_of(job.spec)
    recorder = Recorder(incarnation.directory, job.metadata.name, total, progress, display, tracking, devices)
    stack.callback(recorder.close)
    serve(recorder.prometheus.registry, job.spec.tracking.metrics_port, job_dir, strict=not options.local)
    context = RunContext(job, incarnation, data, tuple(records), retriever_url)
    run = Run.assemble(context, stop, recorder, scale)
    stack.callback(run.close)
    run.train(commit, back)
    state, ranks = run.state, run.workers.ranks
    summary = summarize(
        job,
        state,
        sft_steps=context.sft_steps,
        total_steps=total,
        digest=weights_digest(ranks.full_weights()) if ranks is not None else None,
        peak_memory=memory.close() if memory is not None else None,
        history=read_history(job_dir),
    )
    if not stop.may_write():
        stop.check()
    write_report(job_dir, summary, job.to_manifest())
    recorder.stage("Done", state.step, total)
    recorder.succeeded = state.step == total or state.stopped_early
    recorder.close()
    if not options.quiet:
        report = job_dir / "report.html"
        print_lines([*terminal_lines(summary), f"  {'report':<36} {_shown(report)}"])
    if state.stopped_early:
        recorder.stopped_early(state)
    elif state.step != total:
        raise RuntimeError(f"{state.step} of {total} steps were done")


def check_hooks(job: RLJob) -> None:
    """Import the user's functions before anything is started. Raises UserError for one that is not there, or cannot be
    called as it will be."""
    spec = job.spec
    if spec.rollout.generate.function is not None:
        CustomGenerate(spec.rollout.generate.function, spec.rollout.generate.args)
    make_filter(spec.rollout)
    if spec.reward is not None:
        check_functions(spec.reward)
    check_algorithm_hooks(spec.algorithm)


def _tracking(job: RLJob, incarnation: Incarnation, commit: Commit | None, tell: Callable[[str], None]) -> Tracking:
    step = None if commit is None else LoopState.from_json(commit.loop_state()).step
    facts = RunFacts(
        job=job.metadata.name,
        incarnation=incarnation.name,
        job_dir=incarnation.job_dir,
        directory=incarnation.directory,
        config=learning_fields(job),
        resumed_step=step,
        known=known_runs(incarnation.job_dir),
    )
    return Tracking(make_trackers(job.spec.tracking, facts), incarnation.directory, tell)


def _start_ray(job: RLJob, local: bool, stop: StopFlag, stack: ExitStack) -> None:
    ranks, engines = world_size(job.spec) if trains(job.spec) else 0, engine_count(job.spec)
    if local:
        start_local_ray(ranks, ranks if shares_gpus(job.spec) else max(engines, 1), total_gpus(job.spec))
    else:
        join_ray()
    stack.callback(ray.shutdown)
    stop.on_signals()  # Ray has put a handler of its own for SIGTERM, which would exit at once.
    needed = {TRAINER_RESOURCE: float(ranks)}
    if generates(job.spec):
        needed[ROLLOUT_RESOURCE] = float(engines)
    wait_for_resources(needed, PLACEMENT_SECONDS, stop.check)


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
