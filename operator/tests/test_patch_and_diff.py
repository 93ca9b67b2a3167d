"""podTemplatePatch as Kubernetes merges it, and the comparison that keeps the operator from writing what is there."""

import copy
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_api.errors import UserError
from rljob_operator.controller.writes import merge_patch
from rljob_operator.kube.diff import covers, digest, needs_apply, stamped
from rljob_operator.kube.objects import quantity, same
from rljob_operator.resources.patch import DIRECTIVE, MERGE_KEYS, merge

from tests.work import calls

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

    @pytest.mark.parametrize("broken", ["text", 5, {"a": 1}, ["text", 5, None]])
    def test_what_is_no_list_of_objects_holds_nothing_to_merge_with(self, broken):
        target = {"affinity": {"ports": broken}}
        ports = merge(target, {"affinity": {"ports": [{"containerPort": 1}]}})["affinity"]["ports"]
        assert ports == [*(broken if isinstance(broken, list) else []), {"containerPort": 1}]

    @pytest.mark.parametrize("name", [{"a": 1}, ["a"]])
    def test_a_key_that_is_no_scalar_is_a_users_mistake(self, name):
        with pytest.raises(UserError, match=r"podTemplatePatch\.spec\.containers\[1\]\.name: must be a string"):
            containers([{"name": "ray"}, {"name": name}])

    def test_an_error_shows_no_more_than_the_beginning_of_what_it_names(self):
        with pytest.raises(UserError) as caught:
            merge({}, {"x" * 100_000: {"spec": {DIRECTIVE: "y" * 100_000}}})
        assert caught.value.message.startswith("podTemplatePatch.xxx")
        assert ".spec.$patch: 'yyy" in caught.value.message
        assert len(caught.value.message) < 400


def reference(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The merge by its plain definition: each element of a patch is looked for from the list's beginning."""
    directive = patch.get(DIRECTIVE)
    body = {key: value for key, value in patch.items() if key != DIRECTIVE}
    if directive == "replace":
        return bare(body)
    if directive is not None:
        raise UserError(directive)
    result = copy.deepcopy(dict(target))
    for key, value in body.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            existing = result.get(key)
            result[key] = reference(existing if isinstance(existing, Mapping) else {}, value)
        elif isinstance(value, list) and key in MERGE_KEYS:
            result[key] = reference_list(result.get(key) or [], value, MERGE_KEYS[key])
        else:
            result[key] = copy.deepcopy(value)
    return result


def reference_list(target: list[Any], patch: list[Any], key: str) -> list[Any]:
    if any(element == {DIRECTIVE: "replace"} for element in patch):
        return [bare(element) for element in patch if element != {DIRECTIVE: "replace"}]
    result = [copy.deepcopy(element) for element in target]
    for element in patch:
        if not isinstance(element, Mapping) or key not in element:
            raise UserError("no key")
        found = next((i for i, other in enumerate(result) if other.get(key) == element[key]), None)
        if element.get(DIRECTIVE) == "delete":
            if found is not None:
                result.pop(found)
        elif found is None:
            result.append(reference({}, element))
        else:
            result[found] = reference(result[found], element)
    return result


def bare(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: bare(item) for key, item in value.items() if key != DIRECTIVE and item is not None}
    return [bare(item) for item in value] if isinstance(value, list) else value


def templates(*, patch: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Pod templates in small: few keys, so that they meet, twice within one list, too. Or patches of them."""
    scalar = st.none() | st.integers(0, 2) | st.sampled_from(["a", "b", "c"])
    element_directives = st.sampled_from(["delete", "replace", "replace", "merge"])

    def element(key: str, inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        fields: dict[str, st.SearchStrategy[Any]] = {"value": scalar, "env": inner, "resources": inner}
        made = st.fixed_dictionaries(
            {key: scalar}, optional=fields | ({DIRECTIVE: element_directives} if patch else {})
        )
        return made | st.just({DIRECTIVE: "replace"}) | st.just({"value": 1}) if patch else made | st.just({"value": 1})

    def level(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists = {key: st.lists(element(MERGE_KEYS[key], inner), max_size=6) for key in ("containers", "env", "ports")}
        others = {"tolerations": st.lists(scalar, max_size=2), "resources": inner, "x": scalar | inner}
        return st.fixed_dictionaries(
            {}, optional=lists | others | ({DIRECTIVE: st.sampled_from(["replace", "keep"])} if patch else {})
        )

    return level(level(st.fixed_dictionaries({}, optional={"x": scalar, "y": scalar})))


@given(templates(patch=False), templates(patch=True))
def test_a_patch_merges_by_its_definition(target: dict[str, Any], patch: dict[str, Any]) -> None:
    before = copy.deepcopy((target, patch))
    try:
        expected = reference(target, patch)
    except (UserError, AttributeError, TypeError) as error:
        # Of a list that is none, or of elements that are no objects, the definition says nothing.
        if isinstance(error, UserError):
            with pytest.raises(UserError):
                merge(target, patch)
        return
    assert merge(target, patch) == expected
    assert list(merge(target, patch)) == list(expected)
    assert (target, patch) == before


def test_what_a_template_shares_within_itself_is_patched_once() -> None:
    shared = {"privileged": False}
    pod = {"containers": [{"name": name, "securityContext": shared} for name in ("main", "other")]}
    main, other = merge(pod, {"containers": [{"name": "main", "securityContext": {"privileged": True}}]})["containers"]
    assert (main["securityContext"], other["securityContext"]) == ({"privileged": True}, {"privileged": False})


class Counted(str):
    """Text that counts how often it is compared, and put into other text."""

    __slots__ = ()
    compared: ClassVar[int] = 0
    formatted: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__

    def __format__(self, spec: str) -> str:
        Counted.formatted += 1
        return str.__format__(self, spec)


class TestWork:
    """What a patch costs is bounded by its size; counted, not timed."""

    COUNT = 1000

    def env(self, prefix: str, **more: Any) -> list[dict[str, Any]]:
        return [{"name": Counted(f"{prefix}{i}"), "value": "v"} | more for i in range(self.COUNT)]

    @pytest.mark.parametrize("directive", [{}, {DIRECTIVE: "delete"}, {DIRECTIVE: "replace"}])
    @pytest.mark.parametrize("prefix", ["known", "new"])
    def test_each_element_is_found_at_once(self, prefix, directive):
        target, patch = {"env": self.env("known")}, {"env": self.env(prefix, **directive)}
        Counted.compared = 0
        assert calls(lambda: merge(target, patch)) < 100 * self.COUNT
        assert Counted.compared < 20 * self.COUNT

    def test_an_element_that_is_patched_again_and_again_is_not_copied_each_time(self):
        again = [{"name": "a"}] * self.COUNT
        target = {"containers": [{"name": "a", "args": ["x"] * self.COUNT}]}
        assert calls(lambda: merge(target, {"containers": again})) < 100 * self.COUNT

    def test_a_path_is_put_into_words_only_for_an_error(self):
        Counted.formatted = 0
        merge({}, {f"key{i}": {} for i in range(self.COUNT)}, Counted("of any length"))
        assert Counted.formatted == 0


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
