"""The CRD is what the models say, small enough to be applied, and not stale."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rljob_api.codegen.api_reference import api_reference
from rljob_api.codegen.crd import MAX_JSON_BYTES, crd, crd_json, crd_yaml, schema
from rljob_api.rules.availability import TABLE
from rljob_api.rules.checks import RULES
from rljob_api.rules.immutability import GROWING, MUTABLE
from rljob_api.rules.rule import formatted
from rljob_api.v1alpha1.job import RLJob

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("path", "generated"),
    [
        ("crds/rljobs.yaml", crd_yaml),
        ("charts/rljob/charts/rljob-crds/crd/rljobs.yaml", crd_yaml),
        ("docs/api.md", api_reference),
    ],
)
def test_generated_files_are_fresh(path: str, generated: Any) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == generated(), "stale: run `make generate`"


def test_plain_kubectl_apply_can_carry_it() -> None:
    assert len(crd_json().encode()) < MAX_JSON_BYTES
    assert yaml.safe_load(crd_yaml()) == crd()


def test_subresources_and_names() -> None:
    spec = crd()["spec"]
    version = spec["versions"][0]
    assert spec["names"]["shortNames"] == ["rlj"]
    assert spec["names"]["categories"] == ["all"]
    assert version["subresources"]["status"] == {}
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.rollout.replicas"
    shown = [column["name"] for column in version["additionalPrinterColumns"] if column["priority"] == 0]
    assert shown == ["Phase", "Step", "Reward", "Tok/s", "Attempt", "Age"]


def with_defaults(value: Any, node: dict[str, Any]) -> Any:
    """What the apiserver stores."""
    if isinstance(value, dict) and "properties" in node:
        result = dict(value)
        for name, child in node["properties"].items():
            if name not in result and "default" in child:
                result[name] = copy.deepcopy(child["default"])
            if name in result:
                result[name] = with_defaults(result[name], child)
        return result
    if isinstance(value, list):
        return [with_defaults(entry, node["items"]) for entry in value]
    return value


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"evaluation": {"datasets": [{"name": "a", "path": "p", "sampling": {"topP": 0.7}}], "sampling": {"topK": 3}}},
        {"sft": {"dataset": {"path": "d"}, "optimizer": {"weightDecay": 0.0}}},
        {"trainer": {"pod": {"env": [{"name": "A", "value": "b"}]}}, "lifecycle": {"health": {}}},
        {"retriever": {"corpus": "c", "index": {"path": "i"}}, "model": {"randomInit": {}}},
    ],
)
def test_defaults_of_the_crd_are_those_of_the_models(extra: dict[str, Any]) -> None:
    manifest = {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "a"},
        "spec": {"model": {"path": "m"}, **extra},
    }
    stored = with_defaults(manifest, schema())
    assert stored != manifest
    assert RLJob.model_validate(stored) == RLJob.model_validate(manifest)


def test_sections_given_in_part_keep_their_own_defaults() -> None:
    spec = {"model": {"path": "m"}, "evaluation": {"sampling": {"maxResponseLength": 9}}}
    spec["sft"] = {"dataset": {"path": "d"}, "optimizer": {"weightDecay": 0.0}}
    job = RLJob.model_validate({"metadata": {"name": "a"}, "spec": spec})
    assert job.spec.evaluation.sampling.temperature == 0
    assert job.spec.sft
    assert job.spec.sft.optimizer.lr == 1e-5


def nodes(node: dict[str, Any], path: str) -> Any:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from nodes(node[key], f"{path}[]")


def test_every_field_is_documented_and_bounded() -> None:
    for path, node in nodes(schema()["properties"]["spec"], "spec"):
        assert node.get("description") or path.endswith("[]"), f"{path} has no description"
        assert "type" in node, path
        if node["type"] == "string" and "enum" not in node:
            assert "maxLength" in node, f"{path} is not bounded"
        if node["type"] == "array":
            assert "maxItems" in node, f"{path} is not bounded"
        if "additionalProperties" in node:
            assert "maxProperties" in node, f"{path} is not bounded"


def test_rules_name_fields_that_exist() -> None:
    known = {path.replace("[]", "") for path, _ in nodes(schema(), "")}
    for rule in filter(None, (rule.validation() for rule in RULES)):
        path = ".".join(part for part in (rule.at, rule.field_path) if part).replace("[]", "")
        assert f".{path}" in known, path
    for path in (*MUTABLE, *GROWING):
        assert f".spec.{path}" in known


def test_everything_in_the_spec_is_either_mutable_or_held() -> None:
    root = schema()
    free = {f".spec.{path}" for path in MUTABLE}
    opened = {path.rpartition(".")[0] for path in (*free, *(f".spec.{path}" for path in GROWING))}
    held = [rule["fieldPath"] for rule in root["x-kubernetes-validations"]]

    def leaves(node: dict[str, Any], path: str) -> Any:
        for name, child in node["properties"].items():
            its = f"{path}.{name}"
            yield from leaves(child, its) if its in opened else [its]

    may_not_come_or_go = {".spec.retriever", ".spec.retriever.storage"}
    assert set(held) == set(leaves(root["properties"]["spec"], ".spec")) - free | may_not_come_or_go
    assert len(held) == len(set(held))


def test_the_size_of_a_claim_is_held_by_a_comparison_of_quantities() -> None:
    rules = {rule["fieldPath"]: rule for rule in schema()["x-kubernetes-validations"]}
    for path in GROWING:
        new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
        rule = rules[f".spec.{path}"]
        assert f"quantity({new}).compareTo(quantity({old})) >= 0" in rule["rule"]
        assert f"[{old}, {new}]" in rule["messageExpression"], "both sizes are said"


def test_availability_is_not_in_the_crd_and_names_fields_and_values_that_exist() -> None:
    known = {path.replace("[]", ""): node for path, node in nodes(schema(), "")}
    for entry in TABLE:
        node = known[f".spec.{entry.path.replace('[]', '')}"]
        if isinstance(entry.values, range):
            assert entry.values[-1] == node["maximum"]
        else:
            assert set(entry.values or ()) <= set(node.get("enum", ())), entry
    assert "not available" not in json.dumps(crd())


def test_messages_are_formatted_by_cel() -> None:
    assert formatted("{a.b} of 10 % is {c}") == '"%s of 10 %% is %s".format([a.b, c])'
