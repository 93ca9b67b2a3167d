"""Evaluation sets, scored with the weights that the engines serve."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import prod

import ray
from rljob.types import Sample

from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.orchestrator.checkpointer import Checkpointer
from rljob_trainer.orchestrator.context import EvalSet, RunContext
from rljob_trainer.orchestrator.observer import Observer
from rljob_trainer.orchestrator.recorder import WITHOUT_RETRIEVER
from rljob_trainer.orchestrator.scoring import Scoring
from rljob_trainer.orchestrator.without_retriever import unrelated_passages
from rljob_trainer.orchestrator.workers import Workers
from rljob_trainer.rollout.samples import make_samples, sampling_params, score_of, segments_of

FINAL = "final"


class Evaluator:
    """Evaluates at the moments that `spec.evaluation` names; scores go to `state.evaluations` as `<set>/<moment>`."""

    def __init__(
        self,
        context: RunContext,
        state: LoopState,
        workers: Workers,
        scoring: Scoring,
        checkpointer: Checkpointer,
        observer: Observer,
    ) -> None:
        self._context, self._state, self._workers, self._scoring = context, state, workers, scoring
        self._checkpointer, self._recorder, self._timer = checkpointer, observer.recorder, observer.timer
        self._spec, self._sets = context.job.spec, context.data.evaluation

    def evaluate_only(self) -> None:
        """A job with `mode: Evaluate`: every set is a step, and committed, so that a resumed attempt goes on with the
        next."""
        state, total = self._state, self._context.total_steps
        self._recorder.stage("Evaluate", state.step, total)
        self._workers.sync_weights(state.policy_version)
        for data in self._sets:
            if f"{data.spec.name}/{FINAL}" not in state.evaluations:
                self._checkpointer.stop_here()
                self._evaluate(FINAL, [data])
            state.step = sum(f"{known.spec.name}/{FINAL}" in state.evaluations for known in self._sets)
            self._checkpointer.commit()
            self._recorder.stage("Evaluate", state.step, total)
        self._without_retriever()

    def if_due(self) -> str | None:
        """Evaluate at the start (`atStart`) and after every `interval` rollouts; the end has an evaluation of its own.
        Returns the moment's name when there was one."""
        spec, rollout = self._spec, self._state.rollout
        if rollout == 0:
            due, moment = spec.evaluation.at_start, "after_sft" if spec.sft is not None else "start"
        else:
            every = spec.evaluation.interval
            due = bool(every) and rollout % every == 0 and rollout < spec.rollout.num_rollout
            moment = f"rollout_{rollout}"
        if due and not all(f"{data.spec.name}/{moment}" in self._state.evaluations for data in self._sets):
            self._evaluate(moment, self._sets)
            return moment
        return None

    def at_end(self) -> None:
        """The evaluations that follow the last step."""
        if not self._sets or not self._spec.evaluation.at_end:
            return
        self._recorder.stage("Evaluate")
        self._evaluate(FINAL, self._sets)
        self._without_retriever()

    def _without_retriever(self) -> None:
        """Score once more with unrelated documents: what the model knows by itself."""
        spec, incarnation = self._spec, self._context.incarnation
        if not spec.evaluation.without_retriever or spec.retriever is None:
            return
        host = "127.0.0.1" if incarnation.local else str(ray.util.get_node_ip_address())
        with unrelated_passages(spec.retriever, incarnation.job_dir, host) as url:
            self._evaluate(WITHOUT_RETRIEVER, self._sets, retriever_url=url)

    def _evaluate(self, moment: str, sets: Sequence[EvalSet], *, retriever_url: str | None = None) -> None:
        """retriever_url: of another retriever than the job's."""
        start, state = time.monotonic(), self._state
        with self._timer.phase("evaluate"):
            for data in sets:
                spec = data.spec
                samples = make_samples(
                    data.rows,
                    spec.n_samples_per_prompt,
                    job_seed=self._spec.seed,
                    stage=f"evaluate/{spec.name}",
                    rollout=0,
                )
                samples = self._workers.generate(
                    samples,
                    sampling_params(spec.sampling or self._spec.evaluation.sampling),
                    retriever_url or self._context.retriever_url,
                    self._checkpointer.beat_or_stop,
                )
                name = f"{spec.name}/{moment}"
                scored = self._scoring.score(samples, f"evaluation {name}")
                state.evaluations[name] = scores(samples, self._context.em_label) | scored
                self._recorder.evaluation(state, name, state.evaluations[name])
                for sample in samples[: self._spec.tracking.log_completions]:
                    segments = segments_of(sample, self._context.data.tokenizer)
                    self._recorder.completion(state, name, sample, segments, None)
        state.add_seconds("evaluate", time.monotonic() - start)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, estimated from `correct` right ones of n ≥ k.

    1 − C(n − c, k) ⁄ C(n, k), unbiased (Chen et al. 2021, arXiv:2107.03374, equation 1), as a product that does not
    overflow: C(n − c, k) ⁄ C(n, k) = ∏ (1 − k ⁄ i) over i = n − c + 1 … n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {correct} right among {n}")
    if n - correct < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def ks(n: int) -> list[int]:
    """The k that pass@k is reported for: powers of two below n, and n."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]


def scores(samples: Sequence[Sample], em: str | None) -> dict[str, float]:
    """Scores of an evaluated set; every sample counts, a failed one as wrong.

    `score`: the mean over all samples (mean@n): the share of right ones where the reward has a function that tells
    right from wrong (`em` is its name), else the mean reward. `score/<source>`: the same by source, when there are
    several. `pass@k`, with several samples per prompt: the mean over prompts of the unbiased estimate. `reward`,
    `response_length` (tokens), counters of the generate function: means. `failed`, `truncated`: shares.
    """
    values = {"score": _mean(score_of(sample, em) for sample in samples)}
    values |= {
        "reward": _mean(sample.reward or 0.0 for sample in samples),
        "response_length": _mean(len(sample.response_ids) for sample in samples),
        "samples": float(len(samples)),
        "failed": _mean(sample.status in ("failed", "aborted") for sample in samples),
        "truncated": _mean(sample.status == "truncated" for sample in samples),
    }
    by_source: dict[str, list[float]] = defaultdict(list)
    right: dict[int, list[bool]] = defaultdict(list)
    for sample in samples:
        by_source[sample.source].append(score_of(sample, em))
        right[sample.group].append(score_of(sample, em) >= 1.0)
    if len(by_source) > 1:
        values |= {f"score/{source}": _mean(found) for source, found in sorted(by_source.items())}
    n = min(map(len, right.values()), default=0)
    if n > 1:
        values["prompts"] = float(len(right))
        values |= {f"pass@{k}": _mean(pass_at_k(len(g), sum(g), k) for g in right.values()) for k in ks(n)}
    for key in ("turns", "searches"):
        values[key] = _mean(float(sample.info.get(key, 0.0)) for sample in samples)
    return values


def _mean(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return sum(found) / max(len(found), 1)
