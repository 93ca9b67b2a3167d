"""What a commit holds beside weights and optimizer: where the run stands. The rest follows from the job's seed."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Stage = Literal["SFT", "RL", "Evaluate", "Generate"]
FORMAT = 1


@dataclass
class LoopState:
    """Where the run stands after the last optimizer step."""

    stage: Stage
    """What comes next. `Evaluate`: all steps are trained."""
    step: int = 0
    """Optimizer steps trained, SFT included; sets evaluated or rollouts generated where nothing is trained."""
    rollout: int = 0
    """Rollouts trained; the next one's number."""
    data: dict[str, Any] = field(default_factory=dict)
    """Cursor of the prompt source."""
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    """Scores by `<set>/<moment>`, such as `held-out/after_sft`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds spent so far by stage and by phase of reinforcement learning."""
    tokens_generated: int = 0
    """Tokens generated in training rollouts so far."""
    pending: list[dict[str, Any]] = field(default_factory=list)
    """Groups that wait for the next rollout, good ones and unfinished ones; see the sources in `rollout`."""
    parts: list[str] = field(default_factory=list)
    """Of a generate-only job: files with samples, in order, beneath the job's directory."""
    samples_made: int = 0
    samples_kept: int = 0
    """Of a generate-only job: samples generated, and written."""
    health: dict[str, Any] = field(default_factory=dict)
    """What learning health looks back at, and the conditions that held; see `health.monitor`."""
    early_stop: dict[str, Any] = field(default_factory=dict)
    """`hits`: measurements in a row that were good enough; once there were enough: `value`, `step` and `target`."""
    format: int = FORMAT

    @property
    def stopped_early(self) -> bool:
        """Whether the target of `lifecycle.earlyStop` is reached."""
        return "value" in self.early_stop

    @property
    def policy_version(self) -> int:
        """Version of the weights: the number of rollouts trained."""
        return 0 if self.stage == "Generate" else self.rollout

    def take_up(self, data: dict[str, Any]) -> None:
        """Become the state of a commit. Raises ValueError as `from_json` does."""
        vars(self).update(vars(LoopState.from_json(data)))

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add wall-clock time to `name`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def to_json(self) -> dict[str, Any]:
        """As it is stored in the commit."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LoopState":
        """From a commit. Raises ValueError for a state of another format."""
        if data.get("format") != FORMAT:
            raise ValueError(f"loop state of format {data.get('format')}, this version reads {FORMAT}")
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"loop state with unknown fields {', '.join(unknown)}")
        return cls(**data)
