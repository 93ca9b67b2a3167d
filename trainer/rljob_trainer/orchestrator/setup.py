"""Puts a run together: Ray, data, workers, recorder; trains; writes the report."""

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import ray
from rljob_api.manifest.arithmetic import engine_count, generates, shares_gpus, total_gpus, trains, world_size
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.algorithms.custom import check_algorithm_hooks
from rljob_trainer.checkpoint import Commit
from rljob_trainer.cluster.progress import ProgressReporter
from rljob_trainer.health.rollback import rollbacks, standing
from rljob_trainer.hooks import load_function
from rljob_trainer.metrics.display import make_display
from rljob_trainer.metrics.exporter import serve
from rljob_trainer.metrics.goodput import devices_of
from rljob_trainer.metrics.jsonl import read_history
from rljob_trainer.metrics.memory import PeakMemory
from rljob_trainer.metrics.trackers import RunFacts
from rljob_trainer.metrics.tracking import Tracking, check_tracking, known_runs, make_trackers
from rljob_trainer.orchestrator.job_directory import claim, learning_fields
from rljob_trainer.orchestrator.place import Place
from rljob_trainer.orchestrator.recorder import Recorder
from rljob_trainer.orchestrator.run import Data, Run
from rljob_trainer.orchestrator.stages import choose_commit, train
from rljob_trainer.orchestrator.state import LoopState
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.report.summary import print_lines, summarize, terminal_lines
from rljob_trainer.report.write import write_report
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
    place = Place(options.dir, options.incarnation, options.attempt, options.local, retriever_url)
    if not options.local:
        may_resume = options.attempt > 1 or options.resume_from not in (None, "none")
        claim(place.job_dir, job, may_resume=may_resume, incarnation=place.incarnation)
    commit = choose_commit(place.job_dir, options.resume_from)
    records = rollbacks(place.job_dir)
    if (back := standing(commit, records)) is not None:
        commit = choose_commit(place.job_dir, back.target or "none")
    check_hooks(job)
    check_tracking(job.spec.tracking)
    sft_done = commit is not None and LoopState.from_json(commit.loop_state()).stage != "SFT"
    data = Data(job, place.job_dir, sft_done=sft_done, rollbacks=len(records))
    memory = PeakMemory(os.getppid()) if options.local else None
    _start_ray(job, options.local, stop, stack)
    display = make_display(job.metadata.name, quiet=options.quiet)
    tracking = _tracking(job, place, commit, display.message)
    total = data.total_steps(job)
    devices = devices_of(job.spec)
    recorder = Recorder(place.directory, job.metadata.name, total, progress, display, tracking, devices)
    stack.callback(recorder.close)
    serve(recorder.prometheus.registry, job.spec.tracking.metrics_port, place.job_dir, strict=not options.local)
    run = Run(job, place, data, stop, recorder, records, scale)
    stack.callback(run.close)
    train(run, commit, back)
    summary = summarize(
        job,
        run.state,
        sft_steps=run.sft_steps,
        total_steps=run.total_steps,
        digest=weights_digest(run.ranks.full_weights()) if trains(job.spec) else None,
        peak_memory=memory.close() if memory is not None else None,
        history=read_history(place.job_dir),
    )
    if not stop.may_write():
        stop.check()
    write_report(place.job_dir, summary, job.to_manifest())
    recorder.stage("Done", run.state.step, run.total_steps)
    recorder.succeeded = run.state.step == run.total_steps or run.state.stopped_early
    recorder.close()
    if not options.quiet:
        report = place.job_dir / "report.html"
        print_lines([*terminal_lines(summary), f"  {'report':<36} {_shown(report)}"])
    if run.state.stopped_early:
        recorder.stopped_early(run.state)
    elif run.state.step != run.total_steps:
        raise RuntimeError(f"{run.state.step} of {run.total_steps} steps were done")


def check_hooks(job: RLJob) -> None:
    """Import the user's functions before anything is started. Raises UserError for one that is not there, or cannot be
    called as it will be."""
    spec = job.spec
    hooks = {
        "spec.rollout.generate.function": spec.rollout.generate.function,
        "spec.rollout.dynamicFilter": spec.rollout.dynamic_filter
        if spec.rollout.dynamic_filter != "nonzero_std"
        else None,
    }
    for number, function in enumerate(spec.reward.functions if spec.reward else []):
        hooks[f"spec.reward.functions[{number}].function"] = function.function
    for field, path in hooks.items():
        if path is not None:
            load_function(path, field)
    check_algorithm_hooks(spec.algorithm)


def _tracking(job: RLJob, place: Place, commit: Commit | None, tell: Callable[[str], None]) -> Tracking:
    step = None if commit is None else LoopState.from_json(commit.loop_state()).step
    facts = RunFacts(
        job=job.metadata.name,
        incarnation=place.incarnation,
        job_dir=place.job_dir,
        directory=place.directory,
        config=learning_fields(job),
        resumed_step=step,
        known=known_runs(place.job_dir),
    )
    return Tracking(make_trackers(job.spec.tracking, facts), place.directory, tell)


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
