"""Supervised fine-tuning: a batch of demonstrations per optimizer step, the next one submitted ahead."""

import time
from collections import deque

from rljob_trainer.checkpoint.schedule import next_sft_boundary
from rljob_trainer.orchestrator.run import Run
from rljob_trainer.training.errors import NonFiniteError

AHEAD = 2
"""Steps submitted before the result of the first is awaited, so that ranks never wait for the driver."""
LOG_SECONDS = 1.0
"""The display and the progress are brought up to date this often; metrics.jsonl has every step."""


def train_sft(run: Run) -> None:
    """Train from `run.state.step` to the last SFT step, then enter reinforcement learning (or the end)."""
    source, total = run.data.sft, run.sft_steps
    if source is None:
        raise RuntimeError("supervised fine-tuning without demonstrations")
    checkpoint, batch = run.job.spec.checkpoint, run.job.spec.sft.batch_size if run.job.spec.sft else 1
    run.recorder.stage("SFT", run.state.step, total)
    under_way: deque[tuple[int, object]] = deque()
    submitted = run.state.step
    began = last = time.monotonic()
    while run.state.step < total:
        # What was submitted is always awaited before a boundary, so that a commit holds exactly `state.step` steps.
        boundary = next_sft_boundary(checkpoint, run.state.step, total, batch, len(source))
        while submitted < boundary and len(under_way) <= AHEAD and not run.stop.requested:
            under_way.append((submitted, run.ranks.submit_sft(source.batch(submitted), submitted, total)))
            submitted += 1
        if not under_way:
            run.stop_here()
        step, calls = under_way.popleft()
        try:
            values = run.ranks.sft_result(calls, step)  # type: ignore[arg-type]
        except NonFiniteError as error:
            # Steps that were submitted ahead may be applied by now: there is nothing to commit.
            run.health.not_finite(error, run.state, None)
            raise
        run.state.step = step + 1
        now = time.monotonic()
        values["tokens_per_second"] = values["tokens"] / max(now - last, 1e-9)
        values["seconds"], last = now - last, now
        run.recorder.sft(run.state, total, values)
        run.poll()
        if run.state.step == total:
            run.state.add_seconds("sft", now - began)
            run.enter_rl()
        elif run.state.step == boundary:
            run.state.add_seconds("sft", now - began)
            began = now
            run.commit()
