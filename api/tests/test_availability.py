"""What is not in this version: each refusal says when it applies, in the reference and in its message, and means it."""

import re
from typing import Any

import pytest
from rljob_api.codegen.api_reference import api_reference
from rljob_api.codegen.crd import schema
from rljob_api.rules.availability import ALWAYS, COLOCATED_ELSEWHERE, TABLE, UNEVEN, When, unavailable
from rljob_api.v1alpha1.job import RLJob, RLJobSpec

CONDITIONS = {entry.when.words: entry.when for entry in TABLE if entry.when is not ALWAYS}
ONE_FIELD = r"with `([\w.]+): ([\w-]+)`"


def spec(**sections: dict[str, Any]) -> RLJobSpec:
    """A job that trains and generates."""
    base: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": {"path": "p"}}}
    return RLJob.model_validate({"metadata": {"name": "a"}, "spec": base | sections}).spec


def field(path: str) -> dict[str, Any]:
    """The schema of a dotted path below `spec`; KeyError where there is none."""
    node = schema()["properties"]["spec"]
    for name in path.split("."):
        node = node["properties"][name]
    return node


def rows() -> list[list[str]]:
    """The reference's table: field, when, instead."""
    section = api_reference().split("## Not in this version")[1].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]


def test_the_reference_says_of_each_entry_when_it_is_refused_and_what_to_use() -> None:
    assert len(rows()) == len(TABLE)
    for name, when, instead in rows():
        assert instead, name
        conditions = re.findall(r"`([\w.]+): [\w-]+`", when)
        assert when == "always" or conditions, f"{name}: {when}"
        for path in conditions:
            assert field(path), f"{name}: {when}"


def test_tensor_parallelism_is_denied_to_fsdp_alone() -> None:
    assert next(when for name, when, _ in rows() if "parallelism.tensor" in name) == "with `trainer.backend: fsdp`"
    trainer = {"parallelism": {"tensor": 2}, "gpusPerReplica": 2}
    said = [str(problem) for problem in unavailable(spec(trainer=trainer | {"backend": "fsdp"}))]
    assert [line for line in said if "tensor: 2 is not available in this version with trainer.backend: fsdp;" in line]
    assert not [*unavailable(spec(trainer=trainer | {"backend": "megatron"}))]


def test_megatron_trains_in_bfloat16_alone_and_a_job_in_float16_is_told_so_beforehand() -> None:
    trainer = {"backend": "megatron", "gpusPerReplica": 1}
    for dtype in field("model.dtype")["enum"]:
        said = [str(problem) for problem in unavailable(spec(model={"path": "m", "dtype": dtype}, trainer=trainer))]
        refused = (
            f"spec.model.dtype: {dtype} is not available in this version with trainer.backend: megatron; use bfloat16"
        )
        assert said == ([] if dtype == "bfloat16" else [refused])


@pytest.mark.parametrize("words", [words for words in CONDITIONS if re.fullmatch(ONE_FIELD, words)])
def test_a_condition_on_one_field_holds_for_the_value_that_it_names_alone(words: str) -> None:
    found = re.fullmatch(ONE_FIELD, words)
    assert found
    path, value = found.groups()
    section, name = path.split(".")
    holds = {other for other in field(path)["enum"] if CONDITIONS[words].holds(spec(**{section: {name: other}}))}
    assert holds == {value}


COLOCATED = {"placement": {"type": "colocated"}}
EXAMPLES: list[tuple[When, dict[str, dict[str, Any]], bool]] = [
    (COLOCATED_ELSEWHERE, {"trainer": {"gpusPerReplica": 0}}, True),
    (COLOCATED_ELSEWHERE, {"trainer": {"gpusPerReplica": 2}, "rollout": {"engine": "torch"}}, True),
    (COLOCATED_ELSEWHERE, {"trainer": {"gpusPerReplica": 1}, "rollout": {"engine": "torch"}}, False),
    (COLOCATED_ELSEWHERE, {"trainer": {"gpusPerReplica": 2}, "rollout": {"engine": "sglang"}}, False),
    (UNEVEN, {"trainer": {"gpusPerReplica": 2}, "rollout": {"engine": "sglang", "replicas": 3}}, True),
    (UNEVEN, {"trainer": {"gpusPerReplica": 2}, "rollout": {"engine": "sglang", "replicas": 2}}, False),
]


@pytest.mark.parametrize(("when", "sections", "holds"), EXAMPLES)
def test_a_condition_on_several_fields_holds_as_its_words_say(
    when: When, sections: dict[str, dict[str, Any]], holds: bool
) -> None:
    assert when.holds(spec(**COLOCATED, **sections)) == holds


def test_every_condition_has_an_example() -> None:
    of_several = {words for words in CONDITIONS if not re.fullmatch(ONE_FIELD, words)}
    assert of_several == {when.words for when, _, _ in EXAMPLES}
