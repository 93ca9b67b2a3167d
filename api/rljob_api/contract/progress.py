"""What a job's processes report: the driver's progress and the preparation's, as JSON in the job's progress ConfigMap.

Reports carry no version. A writer of another version may leave fields out, add some, or fill them otherwise: a reader
ignores what it does not know, and a part that it cannot read costs that part (`from_json`).
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import from_json

from rljob_api.contract.other_versions import read_partly

PROGRESS_KEY = "progress.json"
"""The driver's report: in the ConfigMap, and a file of this name in the directory of its incarnation."""
PREPARATION_KEY = "preparation.json"
"""The preparation's report in the ConfigMap."""
_GIB = float(1 << 30)


class _Report(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="ignore", frozen=True
    )

    NEEDED: ClassVar[frozenset[str]] = frozenset()
    """Fields, by their names in JSON, that a report cannot do without."""

    @classmethod
    def from_json(cls, text: str) -> tuple[Self | None, list[str]]:
        """The report without what cannot be read of it, and what that is, as sentences; None when that is needed."""
        try:
            return read_partly(cls, from_json(text), lambda location: location[0] not in cls.NEEDED)
        except ValueError as error:
            return None, [str(error)]


class Commit(_Report):
    """A durable commit."""

    name: str = Field(max_length=256)
    """`<incarnation>/commits/<commit>`."""
    step: int = Field(ge=0)
    policy_version: int = Field(default=0, ge=0)
    time: str | None = None
    """When it was written (RFC 3339)."""


class Health(_Report):
    """A learning-health condition that holds."""

    policy: str = Field(max_length=32)
    message: str = Field(default="", max_length=8192)
    since: int | None = None
    """Rollout since which it holds."""


class Engines(_Report):
    """Which pods the driver's engines are on."""

    serving: list[str] = Field(default_factory=list, max_length=2048)
    drained: list[str] = Field(default_factory=list, max_length=2048)


class EarlyStop(_Report):
    """The target of `lifecycle.earlyStop` that was reached."""

    target: str = Field(max_length=512)
    value: float
    step: int = Field(ge=0)


class Stalled(_Report):
    """A process that is stuck."""

    message: str = Field(default="", max_length=8192)
    stack: str | None = Field(default=None, max_length=4096)
    """File that its stack is kept in."""
    who: str = ""
    doing: str = ""


class RewardFailures(_Report):
    """Samples that got no reward of late."""

    message: str = Field(default="", max_length=8192)
    failures: int = 0
    samples: int = 0
    """Samples among which these failed."""


class Progress(_Report):
    """Where the driver stands, `progress.json`."""

    NEEDED: ClassVar[frozenset[str]] = frozenset({"attempt", "state", "step", "totalSteps", "exitCode"})
    """Guessed wrongly, an attempt would end otherwise than it did."""

    attempt: int
    incarnation: str = ""
    stage: str = ""
    """As `status.stage` of the RLJob."""
    step: int = Field(default=0, ge=0)
    """Optimizer steps trained."""
    total_steps: int = Field(default=0, ge=0)
    """0 until the driver has read its data and its commit."""
    rollout: int = 0
    """Rollouts made."""
    reward: float | None = None
    """Mean of the last rollout."""
    tokens_per_second: float | None = None
    goodput: float | None = None
    """Share of GPU time spent generating and training in the last rollout."""
    policy_version: int = Field(default=0, ge=0)
    evaluation: dict[str, float | None] = Field(default_factory=dict)
    """Last score by `<set>/<moment>`."""
    last_commit: Commit | None = None
    health: dict[str, Health] = Field(default_factory=dict)
    """By the condition's name."""
    reward_failures: RewardFailures | None = None
    early_stop: EarlyStop | None = None
    engines: Engines | None = None
    trainer_wait: float | None = None
    """Share of the last rollout's time that the trainer waited for samples."""
    staleness_max: float | None = None
    """Policy versions that the oldest token of the last batch was behind."""
    stalled: Stalled | None = None
    heartbeat_seconds: float | None = Field(default=None, gt=0)
    """The driver promises a report at least this often; None: it promises nothing."""
    state: str = "Running"
    """`Running`, or the `state` of the exit code."""
    exit_code: int | None = None
    """None while the driver runs."""
    reason: str | None = None
    """An attempt's reason, once the driver has ended."""
    message: str | None = ""
    """Why it ended, for people."""
    time: str | None = None
    """When the report was written (RFC 3339), by the driver's clock."""

    def to_fields(self) -> dict[str, Any]:
        """The fields that were given, by their names in JSON."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


_FIELDS = frozenset(str(info.alias) for info in Progress.model_fields.values())


def require_fields(fields: Mapping[str, Any]) -> None:
    """Raises TypeError when a name is none of a field of `Progress` in JSON: no reader would look at it."""
    if unknown := fields.keys() - _FIELDS:
        raise TypeError(f"{PROGRESS_KEY} has no field {', '.join(sorted(unknown))}")


def attempt_of(text: str | None) -> int:
    """The attempt that wrote a progress report; 0 when there is none that can be read."""
    try:
        report = json.loads(text or "{}")
    except json.JSONDecodeError:
        return 0
    attempt = report.get("attempt") if isinstance(report, dict) else None
    return attempt if isinstance(attempt, int) else 0


class Preparation(_Report):
    """How far the Job that prepares is, `preparation.json`."""

    stage: str = Field(default="", max_length=64)
    percent: int | None = Field(default=None, ge=0, le=100)
    amount: str | None = Field(default=None, max_length=64)
    """In bytes, such as `12.3 of 60.1 GiB`."""

    @staticmethod
    def of(stage: str, done: int, total: int) -> "Preparation":
        """`done` of `total` bytes of a stage are made (0 of 0: not known). A reader may leave a long stage out."""
        if total > 0:
            amount = f"{done / _GIB:.1f} of {total / _GIB:.1f} GiB"
            return Preparation.model_construct(stage=stage, percent=min(100, 100 * done // total), amount=amount)
        return Preparation.model_construct(stage=stage, amount=f"{done / _GIB:.1f} GiB" if done > 0 else None)

    def to_json(self) -> str:
        """The report, as it is written."""
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude_none=True))
