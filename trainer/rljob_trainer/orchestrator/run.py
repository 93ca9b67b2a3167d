"""One run: its parts put together, a commit taken up, and the stages that the job's mode asks for."""

from dataclasses import dataclass
from typing import Self

from rljob_trainer.checkpoint import Commit
from rljob_trainer.checkpoint.loop_state import LoopState, Stage
from rljob_trainer.health.rollback import Rollback
from rljob_trainer.orchestrator.checkpointer import Checkpointer
from rljob_trainer.orchestrator.context import RunContext
from rljob_trainer.orchestrator.evaluate import Evaluator
from rljob_trainer.orchestrator.generate import Generation
from rljob_trainer.orchestrator.hub_uploads import HubUploads
from rljob_trainer.orchestrator.observer import Observer
from rljob_trainer.orchestrator.recorder import Recorder
from rljob_trainer.orchestrator.rl import ReinforcementLearning
from rljob_trainer.orchestrator.scoring import Scoring
from rljob_trainer.orchestrator.sft import train_sft
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.orchestrator.workers import Workers
from rljob_trainer.workers.elasticity import ScaleWish

FIRST: dict[str, Stage] = {"Evaluate": "Evaluate", "Generate": "Generate"}
"""Where jobs of these modes begin."""


@dataclass(frozen=True)
class Run:
    """The parts of a run. Each stage is handed those that it uses."""

    context: RunContext
    state: LoopState
    stop: StopFlag
    observer: Observer
    scoring: Scoring
    workers: Workers
    checkpointer: Checkpointer

    @classmethod
    def assemble(cls, context: RunContext, stop: StopFlag, recorder: Recorder, scale: ScaleWish = lambda: None) -> Self:
        """Nothing is started yet. `scale`: what the operator wants of the number of engines. Raises UserError for a
        reward function or a token of the Hub that is missing."""
        state = LoopState(stage=FIRST.get(context.job.spec.mode, "SFT" if context.sft_steps else "RL"))
        observer = Observer(context, state, stop, recorder)
        scoring = Scoring(context, state, recorder)
        hub = HubUploads(context.job, context.incarnation, context.data.tokenizer, recorder.display.message)
        workers = Workers(context, observer, scale)
        checkpointer = Checkpointer(context, state, stop, workers, observer, hub)
        return cls(context, state, stop, observer, scoring, workers, checkpointer)

    def train(self, commit: Commit | None, back: Rollback | None = None) -> None:
        """What the job's mode asks for, from `commit`, or the beginning, to the end. `back`: the rollback that leads to
        `commit`. Raises Stop when asked to end before."""
        self.start(commit, back)
        parts = (self.context, self.state, self.workers, self.scoring, self.checkpointer, self.observer)
        if self.context.job.spec.mode == "Evaluate":
            Evaluator(*parts).evaluate_only()
        elif self.context.job.spec.mode == "Generate":
            Generation(*parts).generate_all()
        else:
            self._train(Evaluator(*parts))
        self.checkpointer.wait()

    def start(self, commit: Commit | None, back: Rollback | None = None) -> None:
        """Start ranks and engines; take up `commit`, or begin."""
        state, recorder, ranks = self.state, self.observer.recorder, self.workers.ranks
        recorder.stage("Prepare")
        if ranks is not None:
            ranks.start()
        recorder.data(state.step, self.context.data.skipped)
        if commit is not None:
            self._take_up(commit)
        if back is not None:
            if back.stage == state.stage == "RL" and back.data:
                state.data = dict(back.data)  # the prompts go on from where the condition was found
            recorder.display.message(f"rollback {back.number}: {back.why}")
        if ranks is not None:
            ranks.load(commit.path if commit is not None else None)
            if state.stage == "RL":
                ranks.begin_rl()  # nothing when the commit is of that stage already
        if self.workers.engines is not None:
            self.workers.engines.start()
        if commit is not None:
            recorder.committed(state, commit.name)
        recorder.stand(state)
        self.observer.timer.take()

    def close(self) -> None:
        """End what runs beside the loop: the watch, a commit under way, the processes that score."""
        self.observer.watchdog.close()
        self.checkpointer.close()
        self.scoring.close()

    def _take_up(self, commit: Commit) -> None:
        state, total, health = self.state, self.context.total_steps, self.observer.health
        state.take_up(commit.loop_state())
        self.checkpointer.resumed(commit)
        health.resume(state)
        more = self.context.rl_steps and state.step < total and not health.still_done(state)
        if state.stage == "Evaluate" and more:
            state.stage = "RL"  # more is asked for than when the commit was made
            state.early_stop = {}
        self.observer.recorder.display.message(f"resuming from {commit.name} (step {state.step} of {total})")

    def _train(self, evaluator: Evaluator) -> None:
        """Supervised fine-tuning, reinforcement learning, evaluation, export."""
        context, state, workers, checkpointer = self.context, self.state, self.workers, self.checkpointer
        if state.stage == "SFT":
            train_sft(context, state, workers.need_ranks(), checkpointer, self.observer, self.stop)
        if state.stage == "RL":
            ReinforcementLearning(context, state, workers, self.scoring, evaluator, checkpointer, self.observer).train()
        workers.sync_weights(state.policy_version)
        evaluator.at_end()
        workers.leave_gpus_to_ranks()  # what follows is the ranks' alone
        checkpointer.wait()
        model = context.incarnation.directory / "model"
        if context.job.spec.checkpoint.save_hf:
            checkpointer.export_hf(model)
        checkpointer.upload_final(model)
