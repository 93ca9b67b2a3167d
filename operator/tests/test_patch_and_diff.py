"""podTemplatePatch as Kubernetes merges it, and the comparison that keeps the operator from writing what is there."""

import copy
import json
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_operator.diff import covers, digest, needs_apply, stamped
from rljob_operator.quantity import quantity, same
from rljob_operator.reconcile import merge_patch
from rljob_operator.render.patch import merge
from rljob_trainer.config.errors import UserError

POD = {
    "spec": {
        "containers": [
            {"name": "ray", "image": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        ],
        "tolerations": [{"key": "gpu"}],
        "hostNetwork": True,
    }
}


def containers(patch: list) -> list:
    return merge(POD, {"spec": {"containers": patch}})["spec"]["containers"]


class TestPatch:
    def test_merges_by_key_and_appends(self):
        env = containers([{"name": "ray", "env": [{"name": "Y", "value": "3"}, {"name": "Z", "value": "4"}]}])[0]["env"]
        assert env == [{"name": "X", "value": "1"}, {"name": "Y", "value": "3"}, {"name": "Z", "value": "4"}]

    def test_null_removes(self):
        assert "hostNetwork" not in merge(POD, {"spec": {"hostNetwork": None}})["spec"]

    def test_lists_without_key_are_replaced(self):
        assert merge(POD, {"spec": {"tolerations": [{"key": "a"}]}})["spec"]["tolerations"] == [{"key": "a"}]

    def test_delete_directive(self):
        assert containers([{"name": "ray", "env": [{"name": "X", "$patch": "delete"}]}])[0]["env"] == [
            {"name": "Y", "value": "2"}
        ]
        assert containers([{"name": "absent", "$patch": "delete"}]) == POD["spec"]["containers"]

    def test_replace_directives(self):
        assert containers([{"name": "ray", "$patch": "replace", "image": "b"}]) == [{"name": "ray", "image": "b"}]
        assert containers([{"$patch": "replace"}, {"name": "only"}]) == [{"name": "only"}]

    def test_element_without_key_is_a_users_mistake(self):
        with pytest.raises(UserError, match=r"containers\[0\]: must be an object with name"):
            containers([{"image": "b"}])

    def test_nothing_is_changed_in_place(self):
        before = copy.deepcopy(POD)
        containers([{"name": "ray", "image": "b"}])
        assert before == POD

    def test_empty_patch_changes_nothing(self):
        assert merge(POD, {}) == POD


class TestDiff:
    DESIRED: ClassVar[dict] = {
        "metadata": {"name": "x"},
        "spec": {"a": 1, "cpu": "0.5", "list": [{"name": "n", "v": 1}], "none": {}},
    }

    def live(self) -> dict:
        return json.loads(json.dumps(stamped(self.DESIRED, digest(self.DESIRED))))

    def test_what_was_applied_needs_nothing(self):
        live = self.live()
        live["spec"] |= {"added": "by a default", "cpu": "500m"}
        del live["spec"]["none"]
        live["spec"]["list"].insert(0, {"name": "injected"})
        assert not needs_apply(self.DESIRED, digest(self.DESIRED), live)

    def test_changed_by_somebody(self):
        live = self.live()
        live["spec"]["list"][0]["v"] = 2
        assert needs_apply(self.DESIRED, digest(self.DESIRED), live)

    def test_no_longer_wanted(self):
        live = self.live()
        desired = copy.deepcopy(self.DESIRED)
        del desired["spec"]["a"]
        assert needs_apply(desired, digest(desired), live)

    def test_missing(self):
        assert needs_apply(self.DESIRED, digest(self.DESIRED), None)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("0.5", "500m", True), ("1Gi", "1024Mi", True), ("1", 1, True), ("1", "2", False), ("a", "a", True),
     (True, 1, False), ("true", True, False), (None, "", False)],
)  # fmt: skip
def test_scalars(one, other, expected):
    assert same(one, other) is expected


def test_quantity_is_none_for_text():
    assert quantity("abc") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
json_maps = st.dictionaries(st.text(max_size=4), json_values, max_size=5)


@given(json_values)
def test_everything_covers_itself(value):
    assert covers(copy.deepcopy(value), value)


def _apply(target: dict, patch: dict) -> dict:
    """RFC 7386."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = _apply(result[key] if isinstance(result.get(key), dict) else {}, value)
        else:
            result[key] = value
    return result


def _without_nulls(value: object) -> object:
    """Statuses hold no nulls: unset fields are left out."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return value


@given(json_maps.map(_without_nulls), json_maps.map(_without_nulls))
def test_merge_patch_leads_from_one_to_the_other(old, new):
    assert _apply(old, merge_patch(old, new)) == new
