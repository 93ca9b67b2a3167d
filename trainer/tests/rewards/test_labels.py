"""Labels that no reward can read are refused before anything starts, by row."""

from dataclasses import dataclass
from typing import Any

import pytest
from rljob_api.catalogue.rewards import REWARDS
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardSpec
from rljob_trainer.rewards.labels import check_labels


@dataclass
class Row:
    label: Any
    row: int


def reward(*names: str) -> RewardSpec:
    return RewardSpec.model_validate({"functions": [{"name": name} for name in names]})


@pytest.mark.parametrize("name", [entry.name for entry in REWARDS.values() if entry.label != "none"])
@pytest.mark.parametrize("label", [None, float("nan"), "", "  ", [], [None], [float("nan")], [""], True, b"x"])
def test_a_missing_label_is_refused_with_its_row(name: str, label: Any) -> None:
    with pytest.raises(UserError, match=r"spec\.data\.train\.labelKey: row 7: .*golden answer"):
        check_labels([Row("1", 3), Row(label, 7)], reward("tag_count", name), "spec.data.train")


def test_the_label_is_shown_whole_but_not_endlessly() -> None:
    with pytest.raises(UserError, match=r"the label is \{'gold': 'a'\}\n"):
        check_labels([Row({"gold": "a"}, 0)], reward("em"), "spec.data.train")
    with pytest.raises(UserError) as caught:
        check_labels([Row([0] * 10_000, 0)], reward("math"), "spec.data.train")
    assert len(caught.value.message) < 400


def test_rewards_that_read_no_label_need_none() -> None:
    check_labels([Row(None, 0)], reward("tag_count"), "spec.data.train")
    check_labels([Row(None, 0)], None, "spec.data.train")


def test_labels_that_can_be_read_pass() -> None:
    check_labels([Row("1", 0), Row(1e-5, 1), Row(["7"], 2)], reward("math", "dapo", "deepscaler"), "spec.data.train")
    check_labels([Row({"target": ["a", "b"]}, 0)], reward("em"), "spec.data.train")
