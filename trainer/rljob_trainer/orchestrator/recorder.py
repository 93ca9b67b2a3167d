"""Everything that is reported about a run, in one place: JSONL, Prometheus, progress, and the terminal."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rljob.types import Sample

from rljob_trainer import logs
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.cluster.progress import ProgressReporter, now_rfc3339
from rljob_trainer.metrics.display import Display
from rljob_trainer.metrics.exporter import DriverMetrics
from rljob_trainer.metrics.goodput import Devices, goodput, gpu_seconds
from rljob_trainer.metrics.jsonl import COMPLETIONS_FILE, METRICS_FILE, JsonlWriter
from rljob_trainer.metrics.trackers import Completion
from rljob_trainer.metrics.tracking import Tracking
from rljob_trainer.rewards.failures import Failures, ScoreReport, told
from rljob_trainer.watch.stalls import Stall

WITHOUT_RETRIEVER = "without_retriever"
ONE_OF_EACH = Devices(1, 1)
REPORT_SECONDS = 10.0
"""A commit waits so long for its report, at most; then it goes on, and the commit that was reported before stays."""


class Recorder:
    """Writes to all of them; the loops say each thing once."""

    def __init__(
        self,
        directory: Path,
        job_name: str,
        total_steps: int,
        progress: ProgressReporter,
        display: Display,
        tracking: Tracking | None = None,
        devices: Devices = ONE_OF_EACH,
    ) -> None:
        """`directory`: the incarnation's own."""
        self.display, self.progress = display, progress
        self.tracking = tracking or Tracking([], directory)
        self.succeeded = False
        """Whether the job is done; told to the trackers at the end."""
        self._closed = False
        self._unsent: dict[tuple[int, str], list[Completion]] = {}
        self._kinds: dict[str, dict[str, int]] = {}
        """Reward failures of what is not recorded yet (`rollout 7`), by what went wrong."""
        self.prometheus = DriverMetrics(job_name)
        self.total_steps, self._devices = total_steps, devices
        self._metrics = JsonlWriter(directory / METRICS_FILE)
        self._completions = JsonlWriter(directory / COMPLETIONS_FILE)

    def stage(self, name: str, done: int = 0, total: int = 0) -> None:
        """The stage that begins (or goes on)."""
        self.display.stage(name, done, total)
        self.prometheus.stage(name)
        self.progress.update(stage=name, transition=True)

    def data(self, step: int, skipped: Mapping[str, int]) -> None:
        """Rows that were left out because they are too long, by data set; once, at the start."""
        self._write("data", step, {f"skipped/{name}": count for name, count in skipped.items()})

    def sft(self, state: LoopState, total: int, values: Mapping[str, float]) -> None:
        """Numbers of an SFT step."""
        self._write("sft", state.step, values)
        self.tracking.log(state.step, "sft", values)
        seconds = values.get("seconds", 0.0)
        phases = {"train": seconds, "total": seconds}
        # The rate is that of training here, not of generation.
        self.prometheus.values({key: value for key, value in values.items() if key != "tokens_per_second"})
        self.prometheus.trained("SFT", values.get("tokens", 0.0))
        self.prometheus.phases(phases, gpu_seconds(phases, self._devices))
        self.display.stage("SFT", state.step, total)
        self.display.values("sft", state.step, dict(values))
        self._stand(state, tokensPerSecond=values.get("tokens_per_second"))

    def rollout(
        self,
        state: LoopState,
        total: int,
        values: Mapping[str, float],
        seconds: Mapping[str, float],
        *,
        kind: str = "rl",
        stage: str = "RL",
        beside: float | None = None,
    ) -> None:
        """Numbers of a rollout and the steps trained on it; `seconds` by phase; `beside`: see `gpu_seconds`."""
        gpu = gpu_seconds(seconds, self._devices, beside=beside)
        total_seconds = seconds.get("total", 0.0)
        waits = {
            "trainerWait": seconds.get("generate", 0.0) / total_seconds if total_seconds else None,
            "stalenessMax": values.get("staleness_max"),
        }
        share = goodput(gpu)
        if share is not None:
            values = {**values, "goodput": share}
        timed = {f"seconds/{phase}": value for phase, value in seconds.items()}
        failed = self._reward_errors(f"rollout {state.rollout - 1}")
        where = {"rollout": state.rollout, "policy_version": state.policy_version}
        self._write(kind, state.step, {**values, **timed}, **where, **failed)
        self.prometheus.values(values)
        self.prometheus.phases(seconds, gpu)
        if kind == "rl":
            self.prometheus.trained("RL", values.get("trained_tokens", 0.0))
        self._send_completions()
        self.tracking.log(state.step, kind, {**values, **timed})
        self.display.stage(stage, state.rollout, total)
        self.display.values(kind, state.step, dict(values))
        self._stand(
            state, reward=values.get("reward"), tokensPerSecond=values.get("tokens_per_second"), goodput=share, **waits
        )

    def completion(
        self, state: LoopState, name: str, sample: Sample, segments: Sequence[tuple[str, bool]], advantage: float | None
    ) -> None:
        """One sample, whole: `segments` is its response cut where the loss mask changes, (text, trained).

        `name`: `train`, or the evaluation it was made for.
        """
        rows = self._unsent.setdefault((state.step, name), [])
        rows.append(_completion(state, sample, segments, advantage))
        self._completions.write(
            {
                "kind": "completion",
                "name": name,
                "step": state.step,
                "rollout": state.rollout,
                "group": sample.group,
                "index": sample.index,
                "prompt": sample.prompt,
                "segments": [[text, trained] for text, trained in segments],
                "response_ids": sample.response_ids,
                "loss_mask": sample.loss_mask,
                "policy_versions": sorted(set(sample.policy_versions) - {-1}),
                "label": sample.label,
                "source": sample.source,
                "status": sample.status,
                "reward": sample.reward,
                "reward_parts": sample.reward_parts,
                "advantage": advantage,
                "info": sample.info,
            }
        )

    def evaluation(self, state: LoopState, name: str, scores: Mapping[str, float]) -> None:
        """Scores of an evaluation set at a moment: `name` is `<set>/<moment>`."""
        self._write("evaluation", state.step, scores, name=name, **self._reward_errors(f"evaluation {name}"))
        self._send_completions()
        dataset, _, moment = name.partition("/")
        prefix = f"eval/{dataset}/{moment}" if moment == WITHOUT_RETRIEVER else f"eval/{dataset}"
        self.tracking.log(state.step, prefix, scores)
        self.prometheus.evaluation(name.split("/", 1)[0], scores["score"])
        self.display.evaluation(name, scores["score"])
        shown = {key: round(value["score"], 4) for key, value in state.evaluations.items()}
        self.progress.update(evaluation=shown, transition=True)

    def reward_failures(self, report: ScoreReport, failures: Failures, of: str) -> dict[str, float]:
        """How scoring the samples of `of` went. Returns what belongs into the record of it."""
        self.prometheus.reward_failures(report.failures)
        said = None
        if failures.last:
            said = {"message": failures.last, "failures": failures.failures, "samples": failures.samples}
        news = bool(said) != bool(self.progress.snapshot().get("rewardFailures"))
        self.progress.update(rewardFailures=said, transition=news)
        if report.failures and failures.is_news(report.kinds):
            self.display.message(f"reward failures: {told(report, of)}")
        self._kinds[of] = dict(report.kinds)
        return {"reward_failures": float(report.failures)}

    def _reward_errors(self, of: str) -> dict[str, Any]:
        kinds = self._kinds.pop(of, None)
        return {"reward_errors": kinds} if kinds else {}

    def committed(self, state: LoopState, name: str) -> None:
        """A commit is durable. Returns once that is reported, or could not be for the moment. From any thread."""
        self.prometheus.committed()
        last = {"name": name, "step": state.step, "policyVersion": state.policy_version, "time": now_rfc3339()}
        self.progress.update(lastCommit=last, transition=True)
        self.progress.flush(REPORT_SECONDS)

    def reported_commits(self) -> set[str]:
        """Names of the commits that somebody may find in a report as the last one."""
        return self.progress.named_commits()

    def health(self, conditions: Mapping[str, Mapping[str, Any]]) -> None:
        """The learning-health conditions that hold now: rollout since when, policy and message of each."""
        self.progress.update(health={name: dict(said) for name, said in conditions.items()}, transition=True)

    def stalled(self, stall: Stall | None, stack: str) -> None:
        """Who is stuck, and where its stack is kept; None: nobody (any more). Called from the watchdog's thread."""
        said = None
        if stall is not None:
            said = {"who": stall.who, "doing": stall.doing, "message": stall.sentence()}
            if stack:
                said["stack"] = stack
            else:
                self.display.message(f"stalled: {stall.sentence()}")
        self.progress.update(stalled=said, transition=True)

    def stopped_early(self, state: LoopState) -> None:
        """The target of `lifecycle.earlyStop` is reached."""
        self.progress.update(earlyStop={key: state.early_stop[key] for key in ("value", "step", "target")})

    def stand(self, state: LoopState) -> None:
        """Where the run stands, without new numbers."""
        self._stand(state)

    def close(self) -> None:
        """Close files, trackers and display. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        self._send_completions()
        self.tracking.close(self.succeeded)
        self.display.close()
        self._metrics.close()
        self._completions.close()

    def _send_completions(self) -> None:
        unsent, self._unsent = self._unsent, {}
        for (step, name), rows in unsent.items():
            self.tracking.completions(step, name, rows)

    def _stand(self, state: LoopState, **more: float | None) -> None:
        logs.at_step(state.step)
        known: dict[str, Any] = {key: value for key, value in more.items() if value is not None}
        self.prometheus.steps(state.step, self.total_steps, state.rollout, state.policy_version)
        self.progress.update(
            step=state.step, totalSteps=self.total_steps, rollout=state.rollout,
            policyVersion=state.policy_version, **known,
        )  # fmt: skip

    def _write(self, kind: str, step: int, values: Mapping[str, Any], **more: Any) -> None:
        self._metrics.write({"kind": kind, "step": step, **more, **values, "time": round(time.time(), 3)})


def _completion(
    state: LoopState, sample: Sample, segments: Sequence[tuple[str, bool]], advantage: float | None
) -> Completion:
    return Completion(
        rollout=state.rollout,
        group=sample.group,
        index=sample.index,
        prompt=sample.prompt,
        response="".join(text for text, _ in segments),
        label=sample.label if isinstance(sample.label, str) else repr(sample.label),
        status=sample.status,
        reward=sample.reward,
        reward_parts=sample.reward_parts,
        advantage=advantage,
        policy_versions=sorted(set(sample.policy_versions) - {-1}),
    )
