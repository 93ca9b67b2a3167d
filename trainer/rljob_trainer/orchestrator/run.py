"""One run of the driver: what the loops share, and the operations they are made of."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rljob.types import Sample, SamplingParams
from rljob_api.manifest.arithmetic import generates, rl_steps, sft_steps, total_steps, trains, trains_rl
from rljob_api.manifest.errors import UserError
from rljob_api.v1alpha1.evaluation import EvalDataset
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.checkpoint import Commit
from rljob_trainer.data.hub import HubAccess
from rljob_trainer.data.prompts import PromptRow, PromptSource, load_eval
from rljob_trainer.data.sft import SftSource
from rljob_trainer.health.rollback import Rollback
from rljob_trainer.metrics.timing import PhaseTimer
from rljob_trainer.models import load_tokenizer
from rljob_trainer.orchestrator.checkpointer import Commits
from rljob_trainer.orchestrator.hub_uploads import Hub
from rljob_trainer.orchestrator.learning_health import Health
from rljob_trainer.orchestrator.place import Place
from rljob_trainer.orchestrator.recorder import Recorder
from rljob_trainer.orchestrator.state import LoopState, Stage
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.rewards import RewardAwayError, RewardScorer
from rljob_trainer.rewards.failures import Failures
from rljob_trainer.rollout.generate.build import prompt_tokenizer
from rljob_trainer.rollout.samples import em_label
from rljob_trainer.rollout.seeds import salted
from rljob_trainer.watch.watchdog import WAITS, Watchdog
from rljob_trainer.workers.elasticity import ScaleWish
from rljob_trainer.workers.engine_group import EngineGroup
from rljob_trainer.workers.gpu_assignment import TrainerGpus
from rljob_trainer.workers.no_ranks import NoRanks
from rljob_trainer.workers.rank_group import RankGroup
from rljob_trainer.workers.weight_sync import make_weight_sync

logger = logging.getLogger(__name__)
BEAT_SECONDS = 5.0


@dataclass
class EvalSet:
    """An evaluation set and its rows."""

    spec: EvalDataset
    rows: Sequence[PromptRow]


class Data:
    """The job's rows, read once. Demonstrations are left out when `sft_done` and nothing depends on their number; after
    `rollbacks` they come in another order."""

    def __init__(self, job: RLJob, job_dir: Path, *, sft_done: bool = False, rollbacks: int = 0) -> None:
        spec = job.spec
        self.tokenizer = load_tokenizer(spec.model, job_dir)
        cache = spec.model.cache_dir
        hub = HubAccess(Path(job_dir, cache) if cache else None, offline=spec.model.offline)
        self.prompts = None
        prompts_with = prompt_tokenizer(self.tokenizer, spec.rollout)
        if (trains_rl(spec) or spec.mode == "Generate") and spec.data.train is not None:
            self.prompts = PromptSource(spec.data.train, prompts_with, job_dir, spec.seed, hub)
        self.evaluation = []
        self.skipped: dict[str, int] = {}
        for number, dataset in enumerate(spec.evaluation.datasets if spec.mode != "Generate" else []):
            loaded = load_eval(dataset, prompts_with, job_dir, f"spec.evaluation.datasets[{number}]", hub)
            self.evaluation.append(EvalSet(dataset, loaded.rows))
            self.skipped[f"evaluation/{dataset.name}"] = loaded.skipped
        # Last: demonstrations take minutes to tokenise, and what is wrong with the others is told before.
        self.sft = None
        if spec.sft is not None and trains(spec) and not (sft_done and spec.sft.num_steps is not None):
            self.sft = SftSource(
                spec.sft.dataset,
                self.tokenizer,
                job_dir,
                batch_size=spec.sft.batch_size,
                seed=salted(spec.seed, rollbacks),
                max_length=spec.sft.max_sequence_length,
                packing=spec.sft.packing,
                hub=hub,
            )
        if self.prompts is not None:
            self.skipped["prompts"] = self.prompts.skipped
        if self.sft is not None:
            self.skipped["demonstrations"] = self.sft.skipped

    def total_steps(self, job: RLJob) -> int:
        """Steps of the job, now that its rows are counted."""
        rows = None if self.sft is None else len(self.sft)
        return total_steps(job.spec, rows, None if self.prompts is None else len(self.prompts)) or 0


class Run:
    """The state of the run, and what can be done with it."""

    def __init__(
        self,
        job: RLJob,
        place: Place,
        data: Data,
        stop: StopFlag,
        recorder: Recorder,
        rollbacks: Sequence[Rollback] = (),
        scale: ScaleWish = lambda: None,
    ) -> None:
        """`rollbacks`: those of the job so far. `scale`: what the operator wants of the number of engines."""
        self.job, self.place, self.data, self.stop, self.recorder = job, place, data, stop, recorder
        self.sft_steps = sft_steps(job.spec, len(data.sft) if data.sft else None) or 0
        self.rl_steps = rl_steps(job.spec)
        self.total_steps = data.total_steps(job)
        first: dict[str, Stage] = {"Evaluate": "Evaluate", "Generate": "Generate"}
        self.state = LoopState(stage=first.get(job.spec.mode, "SFT" if self.sft_steps else "RL"))
        self.timer = PhaseTimer()
        self.at_boundary = True
        """Whether weights and state belong together; not while the rest of a rollout's steps gets other samples."""
        self.retriever_url = place.retriever_url
        self.em_label = em_label(job.spec.reward)
        self.seed = salted(job.spec.seed, len(rollbacks))
        """Seed of what is sampled for training: after a rollback not the same again."""
        self.health = Health(job, place, recorder, list(rollbacks), settle=lambda: self.commits.settle())
        self._scorer, self._failures = None, None
        if job.spec.reward is not None:
            self._scorer = RewardScorer(job.spec.reward)
            at_once = job.spec.rollout.batch_size * job.spec.rollout.n_samples_per_prompt
            self._failures = Failures(job.spec.reward.functions, at_once)
        self.last_commit: Commit | None = None
        self._synced: int | None = None
        self._last_beat = time.monotonic()
        self.while_waiting: Callable[[], None] = lambda: None
        """What else is to be done about once a second while workers are waited for."""
        self._watchdog = Watchdog(place.directory, job.spec.lifecycle.stall, recorder.stalled)
        self._gpus = TrainerGpus(job.spec, self.beat)
        self.ranks = (
            RankGroup(job, place.job_dir, self.beat, place.directory / "pulse", self._gpus)
            if trains(job.spec)
            else NoRanks()
        )
        self.hub = Hub(job, place, data.tokenizer, recorder.display.message)
        self.commits = Commits(
            job,
            place,
            self.ranks,
            durable=lambda state, commit: recorder.committed(state, commit.name),
            made=self._committed,
            allowed=stop.may_write,
            tick=self.beat,
            in_use=lambda: self.hub.in_use() | self.health.guarded() | recorder.reported_commits(),
        )
        self.engines: EngineGroup | None = None
        if generates(job.spec):
            sync = make_weight_sync(job.spec, self.ranks, place.directory, self.beat)
            self.engines = EngineGroup(
                job,
                place.job_dir,
                self.beat,
                self._engine_replaced,
                sync=sync,
                gpus=self._gpus,
                scale=scale,
                on_scaled=self._scaled,
                pulses=self._watchdog.pulses,
            )

    def start(self, commit: Commit | None, back: Rollback | None = None) -> None:
        """Start ranks and engines; take up `commit`, or begin. `back`: the rollback that leads to `commit`."""
        self.recorder.stage("Prepare")
        self.ranks.start()
        self.recorder.data(self.state.step, self.data.skipped)
        if commit is not None:
            self.state = LoopState.from_json(commit.loop_state())
            self.last_commit = commit
            self.commits.resumed(self.state)
            self.health.resume(self.state)
            more = self.rl_steps and self.state.step < self.total_steps and not self.health.still_done(self.state)
            if self.state.stage == "Evaluate" and more:
                self.state.stage = "RL"  # more is asked for than when the commit was made
                self.state.early_stop = {}
            self.recorder.display.message(f"resuming from {commit.name} (step {self.state.step} of {self.total_steps})")
        if back is not None:
            if back.stage == self.state.stage == "RL" and back.data:
                self.state.data = dict(back.data)  # the prompts go on from where the trouble was
            self.recorder.display.message(f"rollback {back.number}: {back.why}")
        self.ranks.load(commit.path if commit is not None else None)
        if self.state.stage == "RL":
            self.ranks.begin_rl()  # nothing when the commit is of that stage already
        if self.engines is not None:
            self.engines.start()
        if commit is not None:
            self.recorder.committed(self.state, commit.name)
        self.recorder.stand(self.state)
        self.timer.take()

    def beat(self) -> None:
        """Runs about once a second while workers are waited for. Raises Stop when this driver may not go on."""
        if self.stop.fenced:
            self.stop.check()
        self.while_waiting()
        if time.monotonic() - self._last_beat > BEAT_SECONDS:
            self._last_beat = time.monotonic()
            self.recorder.stand(self.state)

    def stop_here(self) -> None:
        """At a boundary: commit and raise Stop when somebody asked for an end. Raises CommitError when a commit that
        was under way could not be written."""
        self.poll()
        if self.stop.requested and self.at_boundary:
            if self.stop.may_write():
                self.commit()
                self.commits.wait()
            self.stop.check()

    def poll(self) -> None:
        """Tell what became of commits and uploads in the background. Raises CommitError for one that failed."""
        self.commits.poll()
        self.hub.poll()

    def commit(self) -> None:
        """Make everything that is needed to go on from here durable, or begin to (`checkpoint.asynchronous`)."""
        if not self.stop.may_write():
            self.stop.check()
        with self._ranks_alone(), self.timer.phase("commit"):
            self.commits.commit(self.state)

    def commit_now(self) -> None:
        """Commit the state as it is, also where one of this step is there already, and wait until it is durable."""
        self.commits.again()
        self.commit()
        self.commits.wait()

    def _committed(self, state: LoopState, commit: Commit) -> None:
        self.last_commit = commit
        self.hub.committed(state, commit, self.export_hf)

    def export_hf(self, directory: Path) -> None:
        """Write the model as a Hugging Face folder."""
        with self._ranks_alone():
            self.ranks.export_hf(directory)

    @contextmanager
    def _ranks_alone(self) -> Iterator[None]:
        """Around what needs all that the ranks keep: with `placement.offloadTrainer` engines that serve leave them the
        GPUs for it, and get their weights again."""
        serving = self.job.spec.placement.offload_trainer and self._synced is not None
        if serving:
            self.before_training()
        yield
        if serving:
            self.sync_weights()

    def enter_rl(self) -> None:
        """The end of SFT: freeze the reference and start the optimizer of reinforcement learning, then commit."""
        if self.rl_steps:
            self.state.stage = "RL"
            self.ranks.begin_rl()
        else:
            self.state.stage = "Evaluate"
        self.commit()

    def sync_weights(self) -> None:
        """Make the engines serve the ranks' weights as version `state.policy_version`."""
        if self.engines is None or self._synced == self.state.policy_version:
            return
        with self.timer.phase("sync"):
            self.engines.update_weights(self.state.policy_version)
            self._synced = self.state.policy_version

    def before_training(self) -> None:
        """Colocated engines leave the GPU to the ranks; they serve nothing until weights are sent again."""
        if self.engines is not None and self.engines.sleeps:
            self.engines.sleep()
            self._synced = None

    def generate(self, samples: Sequence[Sample], sampling: SamplingParams) -> list[Sample]:
        """Generate every sample. A stop that is asked for meanwhile leaves it and commits the last boundary."""
        if self.engines is None:
            raise RuntimeError("the job has no engines")
        limit = float(self.job.spec.rollout.timeout_seconds)
        return self.engines.generate(samples, sampling, self.retriever_url, limit=limit, tick=self.beat_or_stop)

    def score(self, samples: list[Sample], of: str = "") -> dict[str, float]:
        """Set the samples' rewards. A reward function that fails costs its sample, and is told: of a set that is
        complete and known as `of` at once, else by `end_scoring`.

        Returns what to record with a complete set. Raises UserError or RewardAwayError when there is no reward for
        any sample of the set, or for as many in a row as a rollout has.
        """
        if self._scorer is None or self._failures is None:
            return {}
        with WAITS.waiting(["reward functions"], f"scoring {len(samples)} samples"):
            report = self._scorer.score(samples)
        if report.failures:
            reason, count = report.errors.most_common(1)[0]
            logger.warning(
                "%d of %d samples got failureReward; %d times: %s", report.failures, len(samples), count, reason
            )
        if of:
            try:
                self._failures.evaluated(report, of)
            finally:
                told = self.recorder.reward_failures(report, self._failures, of)
            return told
        try:
            self._failures.scored(report, self._this_rollout)
        except (UserError, RewardAwayError):
            self.end_scoring()
            raise
        return {}

    def end_scoring(self) -> dict[str, float]:
        """All samples of this rollout are scored: tell how that went. Returns what to record with the rollout."""
        if self._failures is None:
            return {}
        report = self._failures.end_of_rollout(self._this_rollout)
        return self.recorder.reward_failures(report, self._failures, self._this_rollout)

    @property
    def _this_rollout(self) -> str:
        return f"rollout {self.state.rollout}"

    def close(self) -> None:
        """End what runs beside the loop: the watch, a commit under way, the processes that score."""
        self._watchdog.close()
        self.commits.close()
        self.hub.close()
        if self._scorer is not None:
            self._scorer.close()

    def beat_or_stop(self) -> None:
        """`beat`, and `stop_here`: for waits that may be left at once."""
        self.beat()
        self.stop_here()

    def _scaled(self, engines: dict[str, list[str]]) -> None:
        self.recorder.progress.update(engines=engines, transition=True)

    def _engine_replaced(self, why: str) -> None:
        self.recorder.prometheus.engine_restarted()
        self.recorder.display.message(f"engine replaced: {why}")
