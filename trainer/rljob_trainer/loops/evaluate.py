"""Scoring evaluation sets with the weights that the engines serve."""

import time
from collections import defaultdict
from collections.abc import Sequence

import ray

from rljob_trainer.loops.run import EvalSet, Run
from rljob_trainer.loops.samples import make_samples, sampling_params, score_of, segments_of
from rljob_trainer.loops.unrelated import unrelated_retriever
from rljob_trainer.rollout.types import Sample

WITHOUT_RETRIEVER = "without_retriever"


def evaluate_at_end(run: Run) -> None:
    """The evaluations that follow the last step."""
    spec = run.job.spec
    if not run.data.evaluation or not spec.evaluation.at_end:
        return
    run.recorder.stage("Evaluate")
    evaluate(run, "final")
    if spec.evaluation.without_retriever and spec.retriever is not None:
        host = "127.0.0.1" if run.place.local else str(ray.util.get_node_ip_address())
        with unrelated_retriever(spec.retriever, run.place.job_dir, host) as url:
            own, run.retriever_url = run.retriever_url, url
            try:
                evaluate(run, WITHOUT_RETRIEVER)
            finally:
                run.retriever_url = own


def evaluate(run: Run, moment: str) -> None:
    """Score every evaluation set; results go to `run.state.evaluations` as `<set>/<moment>`."""
    start = time.monotonic()
    with run.timer.phase("evaluate"):
        for data in run.data.evaluation:
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
            run.score(samples)
            name = f"{spec.name}/{moment}"
            run.state.evaluations[name] = scores(samples, run.em_label)
            run.recorder.evaluation(run.state, name, run.state.evaluations[name])
            _keep_completions(run, data, name, samples)
    run.state.add_seconds("evaluate", time.monotonic() - start)


def scores(samples: Sequence[Sample], em: str | None) -> dict[str, float]:
    """`score` is the mean exact match where the reward has it (named `em`), else the mean reward; the same by source
    as `score/<source>`; the mean reward, lengths, and shares by status."""
    count = max(len(samples), 1)
    values = {
        "score": sum(score_of(sample, em) for sample in samples) / count,
        "reward": sum(sample.reward or 0.0 for sample in samples) / count,
        "response_length": sum(len(sample.response_ids) for sample in samples) / count,
        "samples": float(len(samples)),
        "failed": sum(sample.status in ("failed", "aborted") for sample in samples) / count,
        "truncated": sum(sample.status == "truncated" for sample in samples) / count,
    }
    by_source: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        by_source[sample.source].append(score_of(sample, em))
    if len(by_source) > 1:
        values |= {f"score/{source}": sum(found) / len(found) for source, found in sorted(by_source.items())}
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        by_prompt[sample.group].append(score_of(sample, em))
    if len(samples) > len(by_prompt):
        values["pass_at_k"] = sum(max(found) >= 1.0 for found in by_prompt.values()) / len(by_prompt)
    for key in ("turns", "searches"):
        values[key] = sum(float(sample.info.get(key, 0.0)) for sample in samples) / count
    return values


def _keep_completions(run: Run, data: EvalSet, name: str, samples: Sequence[Sample]) -> None:
    for sample in samples[: run.job.spec.tracking.log_completions]:
        run.recorder.completion(run.state, name, sample, segments_of(sample, run.data.tokenizer), None)
