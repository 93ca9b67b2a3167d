"""Exit codes and reasons of attempts: one list, which the API's models and the documentation agree with."""

from pathlib import Path
from typing import get_args

import pytest
from rljob_api.contract.attempt_reasons import ATTEMPT_REASONS, Follows
from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.reasons import EVENTS, WARNINGS
from rljob_api.errors import UserError
from rljob_api.v1alpha1.lifecycle import RetryableReason
from rljob_api.v1alpha1.status import AttemptReason

DOCS = Path(__file__).parents[2] / "docs"
FOLLOWS: dict[Follows, str] = {
    "Complete": "the job is complete",
    "Resume": "goes on without being counted",
    "Pause": "waits for `rljob resume`",
    "Continue": "goes on from an earlier commit, not counted",
    "Retry": "tried again",
    "RetryUncounted": "tried again, not counted",
    "Fail": "**the job fails, never tried again**",
}
"""What the documentation calls each consequence."""


def test_each_reason_of_the_api_has_a_meaning() -> None:
    assert ATTEMPT_REASONS.keys() == set(get_args(AttemptReason))


def test_rules_are_for_the_reasons_that_are_tried_again() -> None:
    ruled = {reason for reason, meaning in ATTEMPT_REASONS.items() if meaning.follows in ("Retry", "RetryUncounted")}
    assert ruled == set(get_args(RetryableReason))


@pytest.mark.parametrize("code", ExitCode)
def test_an_exit_codes_state_fits_what_follows_from_its_reason(code: ExitCode) -> None:
    states: dict[Follows, str] = {
        "Complete": "Succeeded", "Resume": "Suspended", "Pause": "Suspended", "Continue": "Suspended",
        "Retry": "Failed", "Fail": "Failed",
    }  # fmt: skip
    assert code.state == states[code.follows]


def test_codes_are_what_images_of_every_version_end_with() -> None:
    assert [(code.name, int(code)) for code in ExitCode] == [
        ("DONE", 0), ("FAILED", 1), ("USER_ERROR", 2), ("FENCED", 3), ("SUSPENDED", 4), ("UNHEALTHY", 5),
        ("PAUSED", 6), ("ROLLED_BACK", 7),
    ]  # fmt: skip
    assert ExitCode.known(6) is ExitCode.PAUSED
    assert [ExitCode.known(code) for code in (None, -9, 8, 137)] == [None] * 4
    assert UserError.exit_code == ExitCode.USER_ERROR


def test_every_warning_is_an_event() -> None:
    assert WARNINGS < EVENTS


def test_the_documentation_has_the_table_of_reasons() -> None:
    rows = [
        f"| {reason} | {meaning.seen_by} | {meaning.means} | {FOLLOWS[meaning.follows]} |\n"
        for reason, meaning in ATTEMPT_REASONS.items()
    ]
    assert "".join(rows) in (DOCS / "operations.md").read_text(encoding="utf-8")


def test_the_documentation_has_the_table_of_exit_codes() -> None:
    rows = [
        f"| {int(code)} | {code.meaning.replace(f' (exit {code})', '')} | {code.reason} | {FOLLOWS[code.follows]} |\n"
        for code in ExitCode
    ]
    assert "".join(rows) in (DOCS / "concepts/operator.md").read_text(encoding="utf-8")
