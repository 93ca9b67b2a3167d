"""A job with `mode: Generate`: every prompt once, sampled and scored, written for distillation.

Each rollout is a step. Its rows go to a file of this incarnation's own; a commit names the files that count, so that
what was written and not committed is made again. At the end they become one file in the job's directory.
"""

from collections import Counter
from pathlib import Path

import orjson
from rljob.types import Sample
from rljob_api.v1alpha1.output import OutputSpec

from rljob_trainer.atomic_files import write_file
from rljob_trainer.orchestrator.run import Run
from rljob_trainer.orchestrator.sample_files import assemble, sample_row, wanted
from rljob_trainer.rollout.samples import make_samples, rollout_metrics, sampling_params, segments_of

FOLDER, OUTPUT = "samples", "samples"


def generate_only(run: Run) -> None:
    """From wherever the commit stands to the last prompt; then the file."""
    state, prompts = run.state, run.data.prompts
    if prompts is None:
        raise RuntimeError("generation without prompts")
    if state.data:
        prompts.restore(state.data)
    run.recorder.stage("Generate", state.rollout, run.total_steps)
    run.sync_weights()
    run.timer.take()
    while state.rollout < run.total_steps:
        run.stop_here()
        values = _rollout(run)
        due = run.job.spec.checkpoint.save_interval
        if (due and state.rollout % due == 0) or state.rollout == run.total_steps:
            run.commit()
        seconds = run.timer.take()
        state.add_seconds("rl", seconds["total"])
        run.recorder.rollout(state, run.total_steps, values, seconds, kind="generate", stage="Generate")
    parts = [run.place.job_dir / part for part in state.parts]
    assemble(parts, run.place.job_dir, OUTPUT, run.job.spec.output.format)


def _rollout(run: Run) -> dict[str, float]:
    """One step: `run.state` has moved on when it returns."""
    spec, state, prompts = run.job.spec, run.state, run.data.prompts
    assert prompts is not None
    first = state.rollout * spec.rollout.batch_size
    rows = prompts.next(min(spec.rollout.batch_size, len(prompts) - first))
    with run.timer.phase("generate"):
        samples = make_samples(
            rows, spec.rollout.n_samples_per_prompt, job_seed=spec.seed, stage="train", rollout=state.rollout
        )
        samples = run.generate(samples, sampling_params(spec.rollout.sampling))
    seconds = run.timer.seconds("generate")
    with run.timer.phase("reward"):
        scored = run.score(samples, f"rollout {state.rollout}")
    kept = _write(run, samples, spec.output)
    tokens = sum(sum(sample.loss_mask) for sample in samples)
    state.rollout += 1
    state.step = state.rollout
    state.data = prompts.state()
    state.tokens_generated += tokens
    state.samples_made += len(samples)
    state.samples_kept += kept
    state.add_seconds("generate", seconds)
    run.recorder.prometheus.generated(tokens, Counter(str(sample.status) for sample in samples))
    for sample in samples[: spec.tracking.log_completions]:
        run.recorder.completion(state, "generate", sample, segments_of(sample, run.data.tokenizer), None)
    return (
        rollout_metrics(samples, run.em_label)
        | scored
        | {
            "samples_kept": float(kept),
            "samples_left_out": float(len(samples) - kept),
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }
    )


def _write(run: Run, samples: list[Sample], output: OutputSpec) -> int:
    """Write the rollout's rows. Returns their number."""
    rows = [sample_row(sample, segments_of(sample, run.data.tokenizer)) for sample in samples if wanted(sample, output)]
    folder = run.place.directory / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"part-{run.state.rollout:06d}.jsonl"
    write_file(path, b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    run.state.parts.append(str(Path(path).relative_to(run.place.job_dir)))
    return len(rows)
