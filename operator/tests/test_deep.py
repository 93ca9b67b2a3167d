"""JSON of any depth can be read, and what is too deep in a job is refused by name."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_api.manifest.nesting import MAX_DEPTH, too_deep
from rljob_operator.controller.plan import accept
from rljob_operator.kube.trimming import cut, loads, shallow, trim
from rljob_operator.settings import Settings

from tests.conftest import job_manifest

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=30,
)


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@given(VALUES, st.integers(1, 6), st.booleans())
def test_cutting_the_text_is_cutting_the_value(value: Any, depth: int, escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    assert json.loads(cut(text, depth)) == shallow(json.loads(text), depth)


@given(VALUES, st.integers(1, 6))
def test_what_is_not_too_deep_stays_as_it_is(value: Any, depth: int) -> None:
    assert (too_deep(value, depth) is None) == (shallow(value, depth) == value)


@pytest.mark.parametrize("levels", [10, 300, 1200, 5000, 9000])
def test_any_depth_is_read_and_kept(levels: int) -> None:
    text = (
        f'{{"kind": "RLJob", "metadata": {{"name": "x"}}, "spec": {{"rollout": {{"engineArgs": {nested(levels)}}}}}}}'
    )
    obj = trim(loads(text))
    assert obj["metadata"]["name"] == "x"
    orjson.dumps(obj)  # gives up at 254 levels
    assert (too_deep(obj) is None) == (levels < 60)


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(orjson.JSONDecodeError):
        loads('{"a": {')


def test_a_job_that_is_too_deep_is_refused_by_its_path() -> None:
    raw = job_manifest()
    raw["spec"]["rollout"]["engineArgs"] = json.loads(nested(MAX_DEPTH))
    problems, context = accept(trim(raw), Settings(), started=False)
    assert problems == ["spec.rollout.engineArgs.a: nested more than 64 levels deep"]
    assert context is None
