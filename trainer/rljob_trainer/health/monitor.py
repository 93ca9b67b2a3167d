"""What is known of a run's learning health. It travels in the commits, so that a resumed run looks back as far."""

from collections.abc import Mapping
from typing import Any

from rljob_api.v1alpha1.health import HealthCondition, HealthPolicies

from rljob_trainer.health.detect import Finding, Row, detect, longest_window


class Monitor:
    """Takes in each rollout's numbers and says what is new."""

    def __init__(self, policies: HealthPolicies, memory: Mapping[str, Any]) -> None:
        """`memory`: what `to_json` of an earlier attempt's monitor gave; empty at the beginning."""
        self.policies = policies
        self.rows = [Row(**row) for row in memory.get("rows", [])]
        self.active: dict[HealthCondition, Finding] = {
            finding["condition"]: Finding(**finding) for finding in memory.get("active", [])
        }

    def look(self, rollout: int, values: Mapping[str, float]) -> list[Finding]:
        """Take in a rollout; the conditions that hold now and did not before, those to be ignored left out."""
        window = longest_window(self.policies.thresholds)
        self.rows = [*self.rows, Row.of(rollout, values)][-window:]
        found = {
            finding.condition: finding
            for finding in detect(self.rows, self.policies.thresholds)
            if self.policies.policy(finding.condition) != "Ignore"
        }
        fresh = [finding for condition, finding in found.items() if condition not in self.active]
        # A condition that goes on keeps its beginning.
        since = {condition: self.active[condition].since for condition in found if condition in self.active}
        self.active = {
            condition: Finding(condition, since.get(condition, finding.since), finding.message)
            for condition, finding in found.items()
        }
        return fresh

    def add(self, finding: Finding) -> None:
        """Something that no window tells: a step that is not finite. It holds until the next rollout."""
        self.active[finding.condition] = finding

    def forget(self) -> None:
        """Begin to look anew: what was found has been acted on."""
        self.rows, self.active = [], {}

    def to_json(self) -> dict[str, Any]:
        """What a commit keeps. Empty when there is nothing to keep."""
        active = [{"condition": f.condition, "since": f.since, "message": f.message} for f in self.active.values()]
        return {"rows": [row.to_json() for row in self.rows], "active": active}
