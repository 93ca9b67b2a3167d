"""`--set path=value`."""

import pytest
from rljob_cli.manifest import override
from rljob_trainer.config.document import parse_document
from rljob_trainer.config.errors import UserError

TEXT = b"spec: {rollout: {batchSize: 16}, reward: {functions: [{name: em}]}}\n"


def overridden(*sets: str) -> dict:
    return override(parse_document(TEXT, "job.yaml"), list(sets)).value["spec"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spec.rollout.batchSize=32", {"batchSize": 32}),
        ("rollout.batchSize=32", {"batchSize": 32}),
        ("spec.rollout.sampling.topP=0.7", {"batchSize": 16, "sampling": {"topP": 0.7}}),
        ("spec.rollout.sampling.stop=[a, b]", {"batchSize": 16, "sampling": {"stop": ["a", "b"]}}),
        ("spec.rollout.batchSize=null", {"batchSize": None}),
        ("spec.rollout.generate.function=my.m:go", {"batchSize": 16, "generate": {"function": "my.m:go"}}),
        ("spec.rollout.engine=", {"batchSize": 16, "engine": ""}),
        ("spec.rollout.engine=a=b", {"batchSize": 16, "engine": "a=b"}),
    ],
)  # fmt: skip
def test_values_are_yaml(text: str, expected: dict) -> None:
    assert overridden(text)["rollout"] == expected


def test_lists_by_index_and_one_after_the_last() -> None:
    spec = overridden("spec.reward.functions[0].weight=0.5", "spec.reward.functions[1].name=format")
    assert spec["reward"]["functions"] == [{"name": "em", "weight": 0.5}, {"name": "format"}]


def test_small_numbers() -> None:
    assert overridden("optimizer.lr=1e-6")["optimizer"] == {"lr": 1e-6}


@pytest.mark.parametrize(
    "text", ["spec.rollout.batchSize", "=3", "spec.reward.functions[4].name=a", "spec.rollout.batchSize.x=1", "[0]=1"]
)
def test_places_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        overridden(text)


def test_the_file_is_left_alone() -> None:
    document = parse_document(TEXT, "job.yaml")
    override(document, ["spec.rollout.batchSize=1"])
    assert document.value["spec"]["rollout"]["batchSize"] == 16
