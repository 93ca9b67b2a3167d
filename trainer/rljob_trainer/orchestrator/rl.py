"""Reinforcement learning: rollout → reward → advantages → train → sync weights → commit → evaluate."""

from collections.abc import Callable, Mapping

from rljob.types import Sample, SamplingParams
from rljob_api.manifest.arithmetic import batch_plan

from rljob_trainer.checkpoint.schedule import rollout_due
from rljob_trainer.data.prompts import PromptSource
from rljob_trainer.orchestrator.evaluate import evaluate
from rljob_trainer.orchestrator.run import Run
from rljob_trainer.rollout.advantages import Credit
from rljob_trainer.rollout.pending import groups_from_json, groups_to_json
from rljob_trainer.rollout.samples import advantages_of, rollout_metrics, segments_of, staleness_of, train_batches
from rljob_trainer.rollout.synchronous import Collected, collect, make_filter
from rljob_trainer.training.errors import NonFiniteError


class RolloutFailedError(RuntimeError):
    """No sample of a rollout can be trained on."""


def train_rl(run: Run) -> None:
    """Train from rollout `run.state.rollout` to the last one."""
    spec, state = run.job.spec, run.state
    prompts = run.data.prompts
    if prompts is None:
        raise RuntimeError("reinforcement learning without prompts")
    total = spec.rollout.num_rollout
    run.recorder.stage("RL", state.rollout, total)
    if state.data:
        prompts.restore(state.data)
    run.sync_weights()
    done = run.health.done(state, {}, evaluate_if_due(run))  # also what a commit just before an evaluation left undone
    run.timer.take()
    while state.rollout < total and not done:
        run.stop_here()
        cursor = state.data
        values = train_on_rollout(run, prompts)
        done = end_turn(run, values, due=rollout_due(spec.checkpoint, state.rollout, cursor, state.data))
    state.stage = "Evaluate"
    run.commit()


def end_turn(
    run: Run, values: Mapping[str, float], *, due: bool, beside: Callable[[], float | None] = lambda: None
) -> bool:
    """What follows a trained rollout: learning health, commit (when `due`), evaluation, record. Returns whether the
    target of `lifecycle.earlyStop` is reached. `beside`: seconds that engines generated beside the loop since the last
    call. Raises Stop when learning health asks for an end."""
    state, total = run.state, run.job.spec.rollout.num_rollout
    findings = run.health.look(state, values)
    moment = None
    if not run.health.acts(findings):
        if due and state.rollout < total:
            run.commit()
        moment = evaluate_if_due(run)
    seconds = run.timer.take()
    state.add_seconds("rl", seconds["total"] - seconds["evaluate"])
    run.recorder.rollout(state, total, values, seconds, beside=beside())
    run.health.act(findings, state, run.commit_now)
    return run.health.done(state, values, moment)


def evaluate_if_due(run: Run) -> str | None:
    """Evaluate at the start (`atStart`) and after every `interval` rollouts; the end has an evaluation of its own.
    Returns the moment's name when there was one."""
    spec, rollout = run.job.spec, run.state.rollout
    if rollout == 0:
        due, moment = spec.evaluation.at_start, "after_sft" if spec.sft is not None else "start"
    else:
        every = spec.evaluation.interval
        due = bool(every) and rollout % every == 0 and rollout < spec.rollout.num_rollout
        moment = f"rollout_{rollout}"
    if due and not all(f"{data.spec.name}/{moment}" in run.state.evaluations for data in run.data.evaluation):
        evaluate(run, moment)
        return moment
    return None


def train_on_rollout(run: Run, prompts: PromptSource) -> dict[str, float]:
    """One turn of the loop. Returns its numbers; `run.state` has moved on when it returns, and not before."""
    spec, state = run.job.spec, run.state
    tokens, first = 0, state.step
    while True:
        collected = _collect(run, prompts)
        samples, scored = collected.samples, run.end_scoring()
        generate_seconds = run.timer.seconds("generate")
        with run.timer.phase("sync"):
            run.before_training()
        with run.timer.phase("train"):
            advantages = advantages_of(samples, spec.algorithm, run.ranks.token_signals)
        if not advantages:
            reasons = sorted({str(sample.info.get("error", sample.status)) for sample in samples})
            raise RolloutFailedError(
                f"rollout {state.rollout}: none of its {len(samples)} samples can be trained on: "
                f"{'; '.join(reasons[:3])}"
            )
        tokens += collected.generated
        values = rollout_metrics(samples, run.em_label) | scored | collected.metrics
        values |= staleness_of(samples, state.policy_version)
        try:
            with run.timer.phase("train"):
                values |= train_step(run, samples, advantages, done=state.step - first)
        except NonFiniteError as error:
            whole = state.step == first  # else some steps of this rollout are applied already
            # Whatever follows goes on with other prompts.
            state.data, state.pending = prompts.state(), groups_to_json(collected.left)
            run.health.not_finite(error, state, run.commit_now if whole else None)
            run.sync_weights()  # wakes colocated engines, which have left their GPUs to this step
            run.at_boundary = whole
            continue
        run.at_boundary = True
        break
    state.rollout += 1
    state.data, state.pending = prompts.state(), groups_to_json(collected.left)
    state.tokens_generated += tokens
    state.add_seconds("generate", generate_seconds)
    run.sync_weights()
    values["tokens_per_second"] = tokens / max(generate_seconds, 1e-9)
    keep_completions(run, samples, advantages)
    run.recorder.prometheus.generated(tokens, statuses_of(samples))
    return values


def _collect(run: Run, prompts: PromptSource) -> Collected:
    """The groups of this rollout, scored, those of the rollout before that were left over first."""
    spec, state = run.job.spec, run.state

    def generate(samples: list[Sample], sampling: SamplingParams) -> list[Sample]:
        with run.timer.phase("generate"):
            return run.generate(samples, sampling)

    def score(samples: list[Sample]) -> None:
        with run.timer.phase("reward"):
            run.score(samples)

    left = groups_from_json(state.pending, prompts.rows)
    keep = make_filter(spec.rollout)
    return collect(spec.rollout, prompts, left, generate, score, keep, job_seed=run.seed, rollout=state.rollout)


def train_step(run: Run, samples: list[Sample], advantages: dict[int, Credit], *, done: int = 0) -> dict[str, float]:
    """Optimizer steps on the rollout, but for the first `done`. Returns the mean of their metrics.

    Raises NonFiniteError for a step that was not applied; `run.state.step` has counted those before it.
    """
    steps = batch_plan(run.job.spec).num_steps_per_rollout
    batches = train_batches(samples, advantages, steps)
    old = None
    if steps > 1:
        flat = run.ranks.compute_logprobs([sample for batch in batches for sample in batch])
        taken = iter(flat)
        old = [[next(taken) for _ in batch] for batch in batches]
    results = []
    for number, batch in enumerate(batches):
        if number < done:
            continue
        if not batch:
            raise RolloutFailedError(f"rollout {run.state.rollout}: all samples of optimizer step {number} failed")
        step = run.state.rollout * steps + number
        results.append(run.ranks.rl_step(batch, step, run.rl_steps, None if old is None else old[number]))
        run.state.step += 1
    means = {key: sum(result[key] for result in results) / len(results) for key in results[0]}
    return means | {"trained_tokens": sum(result["tokens"] for result in results)}


def keep_completions(run: Run, samples: list[Sample], advantages: dict[int, Credit]) -> None:
    """Record the first samples of a rollout, whole."""
    for number, sample in enumerate(samples[: run.job.spec.tracking.log_completions]):
        segments = segments_of(sample, run.data.tokenizer)
        credit = advantages.get(number)
        run.recorder.completion(run.state, "train", sample, segments, None if credit is None else credit.advantage)


def statuses_of(samples: list[Sample]) -> dict[str, int]:
    """Number of samples by status."""
    statuses: dict[str, int] = {}
    for sample in samples:
        statuses[sample.status] = statuses.get(sample.status, 0) + 1
    return statuses
