"""A job with `mode: Generate`: every prompt once, sampled and scored, written for distillation.

Each rollout is a step. Its rows go to a file of this incarnation's own; a commit names the files that count, so that
what was written and not committed is made again. At the end they become one file in the job's directory.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from rljob.types import Sample
from rljob_api.v1alpha1.output import OutputSpec

from rljob_trainer.atomic_files import replaced_file, write_file
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.metrics.jsonl import plain
from rljob_trainer.orchestrator.checkpointer import Checkpointer
from rljob_trainer.orchestrator.context import RunContext
from rljob_trainer.orchestrator.observer import Observer
from rljob_trainer.orchestrator.scoring import Scoring
from rljob_trainer.orchestrator.workers import Workers
from rljob_trainer.rollout.samples import make_samples, rollout_metrics, sampling_params, segments_of

FOLDER, OUTPUT = "samples", "samples"


class Generation:
    """The stage `Generate`."""

    def __init__(
        self,
        context: RunContext,
        state: LoopState,
        workers: Workers,
        scoring: Scoring,
        checkpointer: Checkpointer,
        observer: Observer,
    ) -> None:
        if context.data.prompts is None:
            raise RuntimeError("generation without prompts")
        self._context, self._state, self._spec = context, state, context.job.spec
        self._prompts = context.data.prompts
        self._workers, self._scoring, self._checkpointer = workers, scoring, checkpointer
        self._recorder, self._timer = observer.recorder, observer.timer

    def generate_all(self) -> None:
        """From wherever the commit stands to the last prompt; then the file."""
        context, state, total = self._context, self._state, self._context.total_steps
        if state.data:
            self._prompts.restore(state.data)
        self._recorder.stage("Generate", state.rollout, total)
        self._workers.sync_weights(state.policy_version)
        self._timer.take()
        while state.rollout < total:
            self._checkpointer.stop_here()
            values = self._rollout()
            due = self._spec.checkpoint.save_interval
            if (due and state.rollout % due == 0) or state.rollout == total:
                self._checkpointer.commit()
            seconds = self._timer.take()
            state.add_seconds("rl", seconds["total"])
            self._recorder.rollout(state, total, values, seconds, kind="generate", stage="Generate")
        job_dir = context.incarnation.job_dir
        assemble([job_dir / part for part in state.parts], job_dir, OUTPUT, self._spec.output.format)

    def _rollout(self) -> dict[str, float]:
        """One step: `state` has moved on when it returns."""
        spec, state, prompts = self._spec, self._state, self._prompts
        first = state.rollout * spec.rollout.batch_size
        rows = prompts.next(min(spec.rollout.batch_size, len(prompts) - first))
        with self._timer.phase("generate"):
            samples = make_samples(
                rows, spec.rollout.n_samples_per_prompt, job_seed=spec.seed, stage="train", rollout=state.rollout
            )
            samples = self._workers.generate(
                samples,
                sampling_params(spec.rollout.sampling),
                self._context.retriever_url,
                self._checkpointer.beat_or_stop,
            )
        seconds = self._timer.seconds("generate")
        with self._timer.phase("reward"):
            scored = self._scoring.score(samples, f"rollout {state.rollout}")
        kept = self._write(samples)
        tokens = sum(sum(sample.loss_mask) for sample in samples)
        state.rollout += 1
        state.step = state.rollout
        state.data = prompts.state()
        state.tokens_generated += tokens
        state.samples_made += len(samples)
        state.samples_kept += kept
        state.add_seconds("generate", seconds)
        self._recorder.prometheus.generated(tokens, Counter(str(sample.status) for sample in samples))
        for sample in samples[: spec.tracking.log_completions]:
            self._recorder.completion(state, "generate", sample, self._segments(sample), None)
        return (
            rollout_metrics(samples, self._context.em_label)
            | scored
            | {
                "samples_kept": float(kept),
                "samples_left_out": float(len(samples) - kept),
                "tokens_per_second": tokens / max(seconds, 1e-9),
            }
        )

    def _write(self, samples: list[Sample]) -> int:
        """Write the rollout's rows. Returns their number."""
        output, incarnation = self._spec.output, self._context.incarnation
        rows = [sample_row(sample, self._segments(sample)) for sample in samples if wanted(sample, output)]
        folder = incarnation.directory / FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"part-{self._state.rollout:06d}.jsonl"
        write_file(path, b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
        self._state.parts.append(str(path.relative_to(incarnation.job_dir)))
        return len(rows)

    def _segments(self, sample: Sample) -> list[tuple[str, bool]]:
        return segments_of(sample, self._context.data.tokenizer)


def wanted(sample: Sample, output: OutputSpec) -> bool:
    """Whether the sample is written."""
    if sample.status != "completed" and (output.completed_only or sample.status != "truncated"):
        return False
    return output.min_reward is None or (sample.reward is not None and sample.reward >= output.min_reward)


def sample_row(sample: Sample, segments: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """One row. `prompt` and `completion` are text as the model saw it, for `prompt_completion`; `segments` has the
    observations of tools marked as not trained on, and the end-of-sequence token where the model wrote it.

    `segments`: the response, cut where the loss mask changes, as (text, trained).
    """
    turns = [(sample.prompt, False), *segments]
    row = {
        "prompt": sample.prompt,
        "completion": sample.response,
        "segments": [{"text": text, "train": train} for text, train in turns],
        "label": sample.label,
        "source": sample.source,
        "row": sample.row,
        "index": sample.index,
        "reward": sample.reward,
        "reward_parts": sample.reward_parts,
        "status": sample.status,
        "policy_version": max(sample.policy_versions, default=-1),
    }
    return {key: plain(value) for key, value in row.items()}


def assemble(parts: Iterable[Path], folder: Path, name: str, form: Literal["jsonl", "parquet"]) -> Path:
    """Put the rows of `parts` (JSONL) into one file, which appears whole or not at all. Returns its path."""
    path = folder / f"{name}.{form}"
    with replaced_file(path) as temporary:
        if form == "jsonl":
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part.read_bytes())
        else:
            _write_parquet(parts, temporary)
    return path


def _write_parquet(parts: Iterable[Path], path: Path) -> None:
    """A row group per part. Labels other than text, and the parts of the reward, are JSON: a column has one type."""
    import pyarrow as pa
    from pyarrow import parquet

    segment = pa.struct([("text", pa.string()), ("train", pa.bool_())])
    schema = pa.schema(
        [
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("segments", pa.list_(segment)),
            ("label", pa.string()),
            ("source", pa.string()),
            ("row", pa.int64()),
            ("index", pa.int64()),
            ("reward", pa.float64()),
            ("reward_parts", pa.string()),
            ("status", pa.string()),
            ("policy_version", pa.int64()),
        ]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            rows = [orjson.loads(line) for line in part.read_bytes().splitlines()]
            for row in rows:
                row["label"] = row["label"] if isinstance(row["label"], str) else json.dumps(row["label"])
                row["reward_parts"] = json.dumps(row["reward_parts"])
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
