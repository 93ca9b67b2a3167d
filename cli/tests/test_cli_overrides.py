"""`--set path=value` and `--overlay file`."""

from pathlib import Path

import pytest
from rljob_api.errors import UserError
from rljob_api.manifest.document import parse_document
from rljob_cli.manifest import load_manifest, merge, override

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


def overlaid(text: str) -> dict:
    return merge(parse_document(TEXT, "job.yaml"), parse_document(text.encode(), "small.yaml")).value


def test_an_overlay_merges_mappings_replaces_lists_and_removes_nulls() -> None:
    spec = overlaid("spec: {rollout: {numRollout: 2}, reward: {functions: [{name: math}]}}")["spec"]
    assert spec == {"rollout": {"batchSize": 16, "numRollout": 2}, "reward": {"functions": [{"name": "math"}]}}
    assert "reward" not in overlaid("spec: {reward: null}")["spec"]
    assert overlaid("spec: {rollout: {generate: {type: search, search: null}}}")["spec"]["rollout"]["generate"] == {
        "type": "search"
    }


@pytest.mark.parametrize("text", ["[1]", "text", "kind: Job"])
def test_what_is_no_overlay_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"small\.yaml"):
        overlaid(text)


def test_set_comes_after_overlays(tmp_path: Path) -> None:
    job, small = tmp_path / "job.yaml", tmp_path / "small.yaml"
    job.write_text((Path(__file__).parents[2] / "examples/quickstart.yaml").read_text())
    small.write_text("spec: {rollout: {numRollout: 2, batchSize: 4}}")
    loaded = load_manifest(str(job), ["rollout.batchSize=8"], [str(small)]).job.spec.rollout
    assert (loaded.num_rollout, loaded.batch_size) == (2, 8)
