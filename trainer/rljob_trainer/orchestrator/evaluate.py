"""Evaluation sets, scored with the weights that the engines serve."""

import time
from collections.abc import Sequence

import ray
from rljob.types import Sample

from rljob_trainer.orchestrator.recorder import WITHOUT_RETRIEVER
from rljob_trainer.orchestrator.run import EvalSet, Run
from rljob_trainer.orchestrator.scores import scores
from rljob_trainer.orchestrator.without_retriever import unrelated_retriever
from rljob_trainer.rollout.samples import make_samples, sampling_params, segments_of

FINAL = "final"


def evaluate_only(run: Run) -> None:
    """A job with `mode: Evaluate`: every set is a step, and committed, so that a resumed attempt goes on with the
    next."""
    run.recorder.stage("Evaluate", run.state.step, run.total_steps)
    run.sync_weights()
    for data in run.data.evaluation:
        if f"{data.spec.name}/{FINAL}" not in run.state.evaluations:
            run.stop_here()
            evaluate(run, FINAL, [data])
        run.state.step = sum(f"{known.spec.name}/{FINAL}" in run.state.evaluations for known in run.data.evaluation)
        run.commit()
        run.recorder.stage("Evaluate", run.state.step, run.total_steps)
    _without_retriever(run)


def evaluate_at_end(run: Run) -> None:
    """The evaluations that follow the last step."""
    if not run.data.evaluation or not run.job.spec.evaluation.at_end:
        return
    run.recorder.stage("Evaluate")
    evaluate(run, FINAL)
    _without_retriever(run)


def _without_retriever(run: Run) -> None:
    """Score once more with unrelated documents: what the model knows by itself."""
    spec = run.job.spec
    if not spec.evaluation.without_retriever or spec.retriever is None:
        return
    host = "127.0.0.1" if run.place.local else str(ray.util.get_node_ip_address())
    with unrelated_retriever(spec.retriever, run.place.job_dir, host) as url:
        own, run.retriever_url = run.retriever_url, url
        try:
            evaluate(run, WITHOUT_RETRIEVER)
        finally:
            run.retriever_url = own


def evaluate(run: Run, moment: str, sets: Sequence[EvalSet] | None = None) -> None:
    """Score evaluation sets (by default all); results go to `run.state.evaluations` as `<set>/<moment>`."""
    start = time.monotonic()
    with run.timer.phase("evaluate"):
        for data in run.data.evaluation if sets is None else sets:
            spec = data.spec
            samples = make_samples(
                data.rows,
                spec.n_samples_per_prompt,
                job_seed=run.job.spec.seed,
                stage=f"evaluate/{spec.name}",
                rollout=0,
            )
            sampling = sampling_params(spec.sampling or run.job.spec.evaluation.sampling)
            samples = run.generate(samples, sampling)
            name = f"{spec.name}/{moment}"
            scored = run.score(samples, f"evaluation {name}")
            run.state.evaluations[name] = scores(samples, run.em_label) | scored
            run.recorder.evaluation(run.state, name, run.state.evaluations[name])
            _keep_completions(run, name, samples)
    run.state.add_seconds("evaluate", time.monotonic() - start)


def _keep_completions(run: Run, name: str, samples: Sequence[Sample]) -> None:
    for sample in samples[: run.job.spec.tracking.log_completions]:
        run.recorder.completion(run.state, name, sample, segments_of(sample, run.data.tokenizer), None)
