"""The chart renders what it should, refuses what it cannot do, and fits the operator's code."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from rljob_operator.kube.objects import KINDS, WORKLOAD
from rljob_operator.settings import Settings

from charts.tests.conftest import CHART, CHARTS, Helm, Render

pytestmark = pytest.mark.helm
ROOT = CHARTS.parent
GOLDEN = Path(__file__).parent / "golden"
VALUES = Path(__file__).parent / "values"
SETS = {"default": [], **{file.stem: ["--values", file] for file in sorted(VALUES.glob("*.yaml"))}}


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The objects of a kind."""
    return [item for item in objects if item["kind"] == kind]


def brief(objects: list[dict[str, Any]]) -> str:
    """Objects as YAML, without what is compared elsewhere (the definition, the dashboards' JSON)."""
    for item in objects:
        if item["kind"] == "CustomResourceDefinition":
            item.pop("spec")
        if item["kind"] == "PrometheusRule":
            item["spec"]["groups"] = ["…"]
        if "dashboard" in item["metadata"]["name"]:
            item["data"] = dict.fromkeys(item["data"], "…")
    return yaml.safe_dump_all(objects, sort_keys=True, width=120, allow_unicode=True)


@pytest.mark.parametrize("name", SETS)
def test_renders_as_in_the_golden_file(name: str, render: Render) -> None:
    text = brief(render(*SETS[name]))
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("RLJOB_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), f"run RLJOB_UPDATE_GOLDEN=1 pytest {__file__} and look at the diff"


@pytest.mark.parametrize("name", SETS)
def test_lint_finds_nothing(name: str, helm: Helm) -> None:
    done = helm("lint", "--strict", CHART, *SETS[name])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("watchNamespaces={Team_A}", "/watchNamespaces/0"),
        ("operator.logLevel=LOUD", "/operator/logLevel"),
        ("operator.workers=0", "/operator/workers"),
        ("jobs.runAsUser=0", "/jobs/runAsUser"),
        ("image.tag=a:b", "/image/tag"),
        ("image.digest=sha256:12", "/image/digest"),
        ("metrics.podMonitor.interval=often", "/metrics/podMonitor/interval"),
        ("replicas=2", "'replicas' not allowed"),
        ("jobs.images.trainr=x", "'trainr' not allowed"),
        ("rljob-crds.kep=true", "'kep' not allowed"),
    ],
)
def test_a_bad_value_is_refused_by_name(value: str, said: str, helm: Helm) -> None:
    done = helm("template", "rljob", CHART, "--set", value)
    assert done.returncode != 0
    assert said in done.stderr


def test_every_value_of_the_defaults_has_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(values: dict[str, Any], part: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            assert key in part["properties"], f"{path}.{key}"
            inner = part["properties"][key]
            if isinstance(value, dict) and "properties" in inner and path + key != "resources":
                check(value, inner, f"{path}.{key}")

    check(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


def test_the_definition_is_the_generated_one(render: Render) -> None:
    generated = ROOT / "crds/rljobs.yaml"
    assert (CHART / "charts/rljob-crds/crd/rljobs.yaml").read_bytes() == generated.read_bytes(), "run make generate"
    (rendered,) = of_kind(render(), "CustomResourceDefinition")
    assert rendered["metadata"].pop("annotations")["helm.sh/resource-policy"] == "keep"
    assert rendered == yaml.load(generated.read_text(), yaml.CSafeLoader)


def test_the_definition_can_be_left_to_others_or_to_helm(render: Render) -> None:
    assert not of_kind(render("--set", "crds.enabled=false"), "CustomResourceDefinition")
    (definition,) = of_kind(render("--set", "rljob-crds.keep=false"), "CustomResourceDefinition")
    assert "helm.sh/resource-policy" not in definition["metadata"]["annotations"]


def rules(objects: list[dict[str, Any]], kind: str) -> list[dict[str, list[str]]]:
    """Rules of the operator's own roles."""
    return [
        rule for role in of_kind(objects, kind) if "-operator" in role["metadata"]["name"] for rule in role["rules"]
    ]


@pytest.mark.parametrize("name", SETS)
def test_no_right_is_without_bounds(name: str, render: Render) -> None:
    objects = render(*SETS[name])
    for role in [*of_kind(objects, "ClusterRole"), *of_kind(objects, "Role")]:
        for rule in role["rules"]:
            words = rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert not any("*" in word for word in words), rule
            assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(words), rule
            assert "secrets" not in rule["resources"], "the operator handles Secrets by name alone"


def test_the_operator_may_do_what_its_code_does(render: Render) -> None:
    granted: dict[tuple[str, str], set[str]] = {}
    for rule in rules(render(), "ClusterRole"):
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault((group, resource), set()).update(rule["verbs"])
    for kind in KINDS.values():
        group = kind.api_version.rpartition("/")[0]
        needed = {"create"} if kind.kind == "Event" else {"get", "list"}
        assert needed <= granted[(group, kind.plural)], kind
    # Nobody may grant a right that he lacks: what a job's Role holds (rljob_operator.resources.rbac).
    for group, resource in (("", "configmaps"), ("coordination.k8s.io", "leases")):
        assert {"get", "patch", "update"} <= granted[(group, resource)]
    assert "update" in granted[("rljob.io", "rljobs/finalizers")], "owner references that block deletion need it"


def test_workloads_are_read_with_kueue_alone(render: Render) -> None:
    without, with_it = render(), render("--set", "kueue.enabled=true")
    assert not [rule for rule in rules(without, "ClusterRole") if "kueue.x-k8s.io" in rule["apiGroups"]]
    (granted,) = [rule for rule in rules(with_it, "ClusterRole") if rule not in rules(without, "ClusterRole")]
    assert granted == {
        "apiGroups": [WORKLOAD.api_version.partition("/")[0]],
        "resources": [WORKLOAD.plural],
        "verbs": ["get", "list", "watch"],
    }
    for objects, wanted in ((without, False), (with_it, True)):
        (deployment,) = of_kind(objects, "Deployment")
        assert Settings.load(deployment["spec"]["template"]["spec"]["containers"][0]["args"], {}).kueue is wanted


def test_serving_some_namespaces_asks_nothing_of_the_others(render: Render) -> None:
    everywhere = {json.dumps(rule) for rule in rules(render(), "ClusterRole")}
    objects = render("--set", "watchNamespaces={a,b}")
    roles = of_kind(objects, "Role")
    assert {role["metadata"]["namespace"] for role in roles} == {"a", "b"}
    assert all({json.dumps(rule) for rule in role["rules"]} <= everywhere for role in roles)
    left = {resource for rule in rules(objects, "ClusterRole") for resource in rule["resources"]}
    assert left == {"customresourcedefinitions", "namespaces"}
    assert not of_kind(render("--set", "watchNamespaces={a}", "--set", "rbac.discovery=false"), "ClusterRole")


@pytest.mark.parametrize("name", SETS)
def test_the_operator_knows_its_flags(name: str, render: Render) -> None:
    (deployment,) = of_kind(render(*SETS[name]), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    known = {field.name for field in fields(Settings)}
    settings = Settings.load(container["args"], {})
    for argument in container["args"]:
        flag = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        assert flag in known
    assert settings.port == container["ports"][0]["containerPort"]
    if name == "everything":
        assert settings.image_pull_secrets == ("pull", "other")
        assert settings.trainer_image == "registry.example/rljob/trainer:1"
    if name == "namespaced":
        assert settings.watch_namespaces == ("team-a", "team-b")


@pytest.mark.parametrize("name", SETS)
def test_every_pod_is_restricted(name: str, render: Render) -> None:
    objects = render(*SETS[name])
    pods = [item["spec"]["template"]["spec"] for item in of_kind(objects, "Deployment")]
    pods += [item["spec"] for item in of_kind(objects, "Pod")]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "limits" in container["resources"]


def test_the_program_of_helm_test_compiles(render: Render) -> None:
    (pod,) = of_kind(render(), "Pod")
    program, address = pod["spec"]["containers"][0]["args"]
    compile(program, "helm test", "exec")
    (service,) = of_kind(render(), "Service")
    assert address == f"http://{service['metadata']['name']}.rljob-system.svc:{service['spec']['ports'][0]['port']}"


def test_the_rules_are_those_of_the_file(render: Render) -> None:
    (rule,) = of_kind(render(*SETS["everything"]), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "rules/rljob.yaml").read_text())
    assert not of_kind(render(), "PrometheusRule")


def test_dashboards_are_found_by_grafana(render: Render) -> None:
    maps = [item for item in of_kind(render(), "ConfigMap") if "dashboard" in item["metadata"]["name"]]
    assert len(maps) == len(list((CHART / "dashboards").glob("*.json")))
    for item in maps:
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        ((_, text),) = item["data"].items()
        assert json.loads(text)["uid"].startswith("rljob-")
    assert not of_kind(render("--set", "dashboards.enabled=false"), "ConfigMap")
