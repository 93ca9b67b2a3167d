"""Supervised fine-tuning: a batch of demonstrations per optimizer step, the next one submitted ahead."""

import time
from collections import deque

from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.checkpoint.schedule import next_sft_boundary
from rljob_trainer.orchestrator.checkpointer import Checkpointer
from rljob_trainer.orchestrator.context import RunContext
from rljob_trainer.orchestrator.observer import Observer
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.training.errors import NonFiniteError
from rljob_trainer.workers.rank_group import Calls, RankGroup

AHEAD = 2
"""Steps submitted before the result of the first is awaited, so that ranks never wait for the driver."""


def train_sft(
    context: RunContext,
    state: LoopState,
    ranks: RankGroup,
    checkpointer: Checkpointer,
    observer: Observer,
    stop: StopFlag,
) -> None:
    """Train from `state.step` to the last SFT step, then enter reinforcement learning (or the end)."""
    source, total = context.data.sft, context.sft_steps
    if source is None:
        raise RuntimeError("supervised fine-tuning without demonstrations")
    spec = context.job.spec
    checkpoint, batch = spec.checkpoint, spec.sft.batch_size if spec.sft else 1
    observer.recorder.stage("SFT", state.step, total)
    under_way: deque[tuple[int, Calls]] = deque()
    submitted = state.step
    began = last = time.monotonic()
    while state.step < total:
        # What was submitted is always awaited before a boundary, so that a commit holds exactly `state.step` steps.
        boundary = next_sft_boundary(checkpoint, state.step, total, batch, len(source))
        while submitted < boundary and len(under_way) <= AHEAD and not stop.requested:
            under_way.append((submitted, ranks.submit_sft(source.batch(submitted), submitted, total)))
            submitted += 1
        if not under_way:
            checkpointer.stop_here()
        step, calls = under_way.popleft()
        try:
            values = ranks.sft_result(calls, step)
        except NonFiniteError as error:
            # Steps that were submitted ahead may be applied by now: there is nothing to commit.
            observer.health.not_finite(error, state, checkpointer, may_commit=False)
            raise
        state.step = step + 1
        now = time.monotonic()
        values["tokens_per_second"] = values["tokens"] / max(now - last, 1e-9)
        values["seconds"], last = now - last, now
        observer.recorder.sft(state, total, values)
        checkpointer.poll()
        if state.step == total:
            state.add_seconds("sft", now - began)
            _end(context, state, ranks, checkpointer)
        elif state.step == boundary:
            state.add_seconds("sft", now - began)
            began = now
            checkpointer.commit()


def _end(context: RunContext, state: LoopState, ranks: RankGroup, checkpointer: Checkpointer) -> None:
    """Freeze the reference and start the optimizer of reinforcement learning, where there is any, then commit."""
    if context.rl_steps:
        state.stage = "RL"
        ranks.begin_rl()
    else:
        state.stage = "Evaluate"
    checkpointer.commit()
