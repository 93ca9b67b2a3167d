"""What the operator renders: golden files of everything, and the properties that must hold whatever the spec says.

`RLJOB_UPDATE_GOLDEN=1 pytest operator/tests/test_render.py` writes the golden files anew; read the diff.
"""

import ast
import copy
import json
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as tests
from hypothesis import strategies as st
from rljob_api.contract import names
from rljob_api.v1alpha1.job import MAX_NAME_LENGTH, RLJob
from rljob_operator.resources import prepare
from rljob_operator.resources.children import Wanted, children
from rljob_operator.resources.context import Context
from rljob_operator.resources.rayjob import ray_job
from rljob_operator.settings import Settings

from tests.conftest import NAMESPACE, UID, job_manifest

GOLDEN = Path(__file__).parent / "golden"
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
REQUEST = {"suspend": False, "attempt": 1, "generation": 1, "requestedAt": None}


def context(manifest: dict, **settings: object) -> Context:
    return Context(job=RLJob.model_validate(manifest), namespace=NAMESPACE, uid=UID, settings=Settings(**settings))


def rendered(manifest: dict, attempt: int = 1, resume_from: str | None = None, **settings: object) -> list[dict]:
    ctx = context(manifest, **settings)
    made = [job for job in (prepare.job(ctx),) if job]
    return [*children(ctx, Wanted(attempt=attempt, request=REQUEST)), *made, ray_job(ctx, attempt, resume_from)]


FULL = job_manifest(
    "full",
    code={"files": {"my_reward.py": "def f(sample):\n    return 1.0\n"}},
    model={
        "path": "org/model",
        "source": {"type": "hub", "token": {"name": "hub", "key": "token"}},
        "dtype": "bfloat16",
    },
    trainer={
        "backend": "megatron", "replicas": 2, "gpusPerReplica": 8, "threadsPerRank": 2,
        "pod": {
            "resources": {"requests": {"cpu": "16", "memory": "200Gi"}, "limits": {"memory": "400Gi"}},
            "env": [{"name": "NCCL_DEBUG", "value": "INFO"},
                    {"name": "PROXY_PASSWORD", "secretKeyRef": {"name": "proxy", "key": "password"}}],
            "labels": {"team": "a", "rljob.io/job": "stolen"},
            "annotations": {"note": "x"},
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "priorityClassName": "high", "runtimeClassName": "nvidia", "shmSize": "64Gi",
            "rdma": {"rdma/hca": "1"},
            "podTemplatePatch": {
                "metadata": {"labels": {"rljob.io/role": "head"}},
                "spec": {
                    "hostIPC": True,
                    "containers": [{"name": "ray", "env": [{"name": "RAY_LOG_TO_STDERR", "value": "1"}]},
                                   {"name": "sidecar", "image": "busybox"}],
                },
            },
        },
    },
    rollout={
        "pod": {
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 1, "preference": {"matchExpressions": [{"key": "spot", "operator": "Exists"}]}}]}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}],
            "schedulerName": "bin-packing",
        },
        "engine": "sglang", "replicas": 4, "gpusPerEngine": 4, "batchSize": 4, "nSamplesPerPrompt": 2,
        "generate": {"type": "search", "search": {
            "backend": "google", "google": {"apiKey": {"name": "serper", "key": "key"}}},
            "tools": {"functions": [{"name": "add", "url": "http://tools", "token": {"name": "tools", "key": "key"}}]}},
    },
    reward={"functions": [{"name": "remote", "url": "http://judge", "token": {"name": "judge", "key": "key"}}]},
    tracking={"wandb": {"project": "p", "apiKey": {"name": "wandb", "key": "key", "env": "MY_WANDB"}}},
    retriever={
        "corpus": "/rljob-retriever/wiki-18.jsonl", "index": {"path": "/rljob-retriever/e5_Flat.index"},
        "storage": {"size": "200Gi", "storageClassName": "fast"},
        "autoscaling": {"minReplicas": 2, "maxReplicas": 6},
    },
    storage={"claimName": "shared", "subPath": "jobs/full"},
    images={"trainer": "registry/trainer:1", "retriever": "registry/retriever:1", "pullPolicy": "Always",
            "pullSecrets": ["pull"]},
    lifecycle={"terminationGracePeriodSeconds": 300, "queue": {"name": "team-a", "priorityClass": "high"}},
)  # fmt: skip
SFT_ONLY = job_manifest(
    "sft-only",
    algorithm={"type": "sft"},
    sft={"dataset": {"path": "a.jsonl"}, "numSteps": 5},
    storage={"size": "100Gi", "storageClassName": "nfs", "accessModes": ["ReadWriteOnce"]},
    tracking={"metricsPort": 0},
)
del SFT_ONLY["spec"]["retriever"], SFT_ONLY["spec"]["reward"], SFT_ONLY["spec"]["rollout"]
CASES = {
    "demo": (job_manifest(), {"image_pull_secrets": ("operator-pull",)}, 1, None),
    "full": (FULL, {}, 3, "0002-0123abcd/commits/step-000040"),
    "sft-only": (SFT_ONLY, {}, 1, None),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    manifest, settings, attempt, resume_from = CASES[case]
    # Through JSON, so that shared parts do not become YAML anchors.
    objects = json.loads(json.dumps(rendered(manifest, attempt, resume_from, **settings)))
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120)
    file = GOLDEN / f"{case}.yaml"
    if os.environ.get("RLJOB_UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "rendered objects changed: RLJOB_UPDATE_GOLDEN=1 and read the diff"


@pytest.mark.parametrize(
    ("gang", "labels"),
    [
        ({"scheduler": "volcano", "queue": "ml"},
         {"volcano.sh/queue-name": "ml", "ray.io/priority-class-name": "high"}),
        ({"scheduler": "yunikorn", "queue": "root.ml"},
         {"ray.io/gang-scheduling-enabled": "true", "yunikorn.apache.org/app-id": "demo-2",
          "yunikorn.apache.org/queue": "root.ml"}),
        ({"scheduler": "scheduler-plugins"}, {"ray.io/gang-scheduling-enabled": "true"}),
        ({"scheduler": "kai-scheduler", "queue": "ml"}, {"kai.scheduler/queue": "ml"}),
    ],
)  # fmt: skip
def test_gang_scheduling_is_asked_for_by_the_labels_that_kuberay_reads(gang, labels):
    trainer = {"backend": "fsdp", "pod": {"priorityClassName": "high"}}
    plain = rendered(job_manifest(trainer=trainer), attempt=2)[-1]["metadata"]["labels"]
    asked = rendered(job_manifest(trainer=trainer, lifecycle={"gang": gang}), attempt=2)[-1]["metadata"]["labels"]
    assert asked == plain | labels


@pytest.mark.parametrize("mode", ["Evaluate", "Generate"])
def test_a_job_that_does_not_train_has_engines_and_no_trainer(mode):
    body = rendered(job_manifest(mode=mode))[-1]
    assert [group["groupName"] for group in body["spec"]["rayClusterSpec"]["workerGroupSpecs"]] == ["rollout"]


job_names = st.builds(
    lambda first, rest: (first + rest).rstrip("-"),
    st.sampled_from(string.ascii_lowercase),
    st.text(alphabet=string.ascii_lowercase + string.digits + "-", max_size=MAX_NAME_LENGTH - 1),
)


@given(name=job_names, attempt=st.integers(1, names.MAX_ATTEMPT))
def test_names_are_valid_and_fit(name, attempt):
    ray = names.ray_job(name, attempt)
    assert len(ray) <= 47
    assert len(f"{ray}-xxxxx") <= 53
    made = [names.config, names.code, names.progress, names.control, names.driver, names.claim, names.retriever]
    for child in [ray, *(make(name) for make in made)]:
        assert len(child) <= 63
        assert DNS_1035.fullmatch(child)


@tests(deadline=None, max_examples=30)
@given(name=job_names)
def test_every_child_is_owned_labelled_and_in_the_jobs_namespace(name):
    for child in rendered(job_manifest(name)):
        metadata = child["metadata"]
        (owner,) = metadata["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, True)
        assert metadata["namespace"] == NAMESPACE
        assert metadata["labels"]["rljob.io/job"] == name
        for value in metadata["labels"].values():
            assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", value)
            assert len(value) <= 63


def _pod_specs(objects: list[dict]) -> dict[str, dict]:
    found = {}
    for obj in objects:
        if obj["kind"] == "Deployment":
            found["retriever"] = obj["spec"]["template"]
        elif obj["kind"] == "Job":
            found["prepare"] = obj["spec"]["template"]
        elif obj["kind"] == "RayJob":
            cluster = obj["spec"]["rayClusterSpec"]
            found["head"] = cluster["headGroupSpec"]["template"]
            found |= {g["groupName"]: g["template"] for g in cluster["workerGroupSpecs"]}
    return found


@pytest.mark.parametrize("case", CASES)
def test_pods_are_restricted(case):
    manifest, settings, attempt, resume_from = CASES[case]
    for group, template in _pod_specs(rendered(manifest, attempt, resume_from, **settings)).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is (group in ("head", "prepare")), "who reports to the apiserver"
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            if container["name"] == "sidecar":
                continue
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
            }  # fmt: skip
            writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            index = {"/rljob-retriever"} if group == "prepare" and case == "full" else set()
            assert writable == {"/tmp", "/dev/shm"} | index | (set() if group == "retriever" else {"/rljob"})
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, "a ResourceQuota asks for both"


def test_secrets_are_references_only():
    env = {e["name"]: e for e in _pod_specs(rendered(FULL))["head"]["spec"]["containers"][0]["env"]}
    expected = {
        "HF_TOKEN": "hub",
        "SERPER_API_KEY": "serper",
        "MY_WANDB": "wandb",
        "RLJOB_TOOL_0_TOKEN": "tools",
        "RLJOB_REWARD_0_TOKEN": "judge",
    }
    for variable, secret in expected.items():
        assert env[variable]["valueFrom"]["secretKeyRef"]["name"] == secret
        assert "value" not in env[variable]


def test_users_labels_and_patches_cannot_hide_a_pod():
    labels = _pod_specs(rendered(FULL))["trainer"]["metadata"]["labels"]
    assert (labels["rljob.io/job"], labels["rljob.io/role"], labels["team"]) == ("full", "trainer", "a")


def test_patch_merges_containers_by_name():
    spec = _pod_specs(rendered(FULL))["trainer"]["spec"]
    assert spec["hostIPC"] is True
    assert [c["name"] for c in spec["containers"]] == ["ray", "sidecar"]
    env = {e["name"] for e in spec["containers"][0]["env"]}
    assert {"RAY_LOG_TO_STDERR", "NCCL_DEBUG", "RLJOB_NAME"} <= env


def test_colocated_engines_live_in_the_trainers_pods():
    manifest = job_manifest(
        trainer={"backend": "fsdp", "replicas": 1, "gpusPerReplica": 1}, placement={"type": "colocated"}
    )
    groups = rendered(manifest)[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["trainer"]
    assert '"rljob_trainer": 1, "rljob_rollout": 1' in groups[0]["rayStartParams"]["resources"]


def test_gpus_and_rdma_are_requested():
    resources = _pod_specs(rendered(FULL))["trainer"]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == {"memory": "400Gi", "nvidia.com/gpu": "8", "rdma/hca": "1"}
    assert resources["requests"]["nvidia.com/gpu"] == "8"
    rollout = _pod_specs(rendered(FULL))["rollout"]["spec"]["containers"][0]["resources"]
    assert rollout["limits"]["nvidia.com/gpu"] == "4"


def test_trainer_and_rollout_land_on_their_own_pods():
    cluster = rendered(FULL)[-1]["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    params = {g["groupName"]: g["rayStartParams"]["resources"] for g in cluster["workerGroupSpecs"]}
    # What KubeRay pastes into a shell must reach Ray as JSON.
    assert {g: json.loads(r.strip("'")) for g, r in params.items()} == {
        "trainer": {"rljob_trainer": 8}, "rollout": {"rljob_rollout": 1},
    }  # fmt: skip


def test_role_names_three_objects():
    (role,) = [c for c in rendered(job_manifest()) if c["kind"] == "Role"]
    assert [(r["resources"], r["resourceNames"]) for r in role["rules"]] == [
        (["configmaps"], ["demo-progress"]), (["configmaps"], ["demo-control"]), (["leases"], ["demo-driver"]),
    ]  # fmt: skip


def test_incarnation_is_the_attempt_and_the_head_pods_uid():
    entrypoint = ray_job(context(job_manifest()), 7, None)["spec"]["entrypoint"]
    words = subprocess.run(
        ["sh", "-c", f"echo {entrypoint}"],
        env={"RLJOB_INCARNATION_ID": "ab12cd34-5678-4abc-8def-0123456789ab"},
        capture_output=True, text=True, timeout=10, check=True,
    ).stdout.split()  # fmt: skip
    assert words[words.index("--incarnation") + 1] == "0007-ab12cd34"
    assert "--resume-from" not in words


@pytest.mark.parametrize(
    "evil", ["x; touch pwned", "$(touch pwned)", "`touch pwned`", "a' ; touch pwned; '", "a\ntouch pwned"]
)
def test_no_text_becomes_a_command(evil, tmp_path):
    """What a driver reported as its commit comes back in the next attempt's command line, for a shell."""
    entrypoint = ray_job(context(job_manifest()), 2, evil)["spec"]["entrypoint"]
    program = "import sys; print(repr(sys.argv[1:]))"
    said = subprocess.run(
        ["sh", "-c", entrypoint.replace("python -m rljob_trainer.driver", f"{sys.executable} -c '{program}'")],
        env={"RLJOB_INCARNATION_ID": "ab12cd34-5678"}, cwd=tmp_path,
        capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip
    words = ast.literal_eval(said)
    assert words[-2:] == ["--resume-from", evil]
    assert not list(tmp_path.iterdir())


def test_config_is_the_manifest():
    config = next(c for c in rendered(FULL) if c["metadata"]["name"] == "full-config")
    job = RLJob.model_validate_json(config["data"]["rljob.json"])
    assert job.spec == RLJob.model_validate(FULL).spec


PLACED = {"head": ("trainer", "headPod"), "trainer": ("trainer", "pod"), "rollout": ("rollout", "pod"),
          "retriever": ("retriever", "pod")}  # fmt: skip
"""Where the spec says of a group's pods."""


def placement_of(group: str) -> dict:
    """Every override of placement, with values that no other group has."""
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": f"{group}-nodes", "operator": "Exists"}]}]}}}  # fmt: skip
    spread = {"maxSkew": 1, "topologyKey": f"example.com/{group}-rack", "whenUnsatisfiable": "DoNotSchedule"}
    return {
        "nodeSelector": {"pool": group},
        "tolerations": [{"key": f"{group}-taint", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
        "affinity": affinity,
        "topologySpreadConstraints": [spread],
        "schedulerName": f"{group}-scheduler",
        "priorityClassName": f"{group}-first",
        "runtimeClassName": f"{group}-runtime",
    }


def test_every_group_is_placed_as_its_own_section_says():
    manifest = job_manifest()
    for group, (section, field) in PLACED.items():
        patch = {"metadata": {"annotations": {"patched": group}}, "spec": {"hostname": f"{group}-host"}}
        manifest["spec"][section][field] = placement_of(group) | {"podTemplatePatch": patch}
    made = _pod_specs(rendered(manifest))
    assert made.keys() == {*PLACED, "prepare"}
    for group, template in made.items():
        spec = template["spec"]
        said = "retriever" if group == "prepare" else group  # the index is made where the retriever may run
        wanted = placement_of(said)
        (spread,) = wanted.pop("topologySpreadConstraints")
        assert {field: spec.get(field) for field in wanted} == wanted, group
        own = {"matchLabels": {"rljob.io/job": "demo", "rljob.io/role": group}}
        assert spec["topologySpreadConstraints"] == [spread | {"labelSelector": own}], group
        patched = (None, None) if group == "prepare" else (group, f"{group}-host")  # a patch is of one template
        assert (template["metadata"].get("annotations", {}).get("patched"), spec.get("hostname")) == patched, group


def test_what_is_said_of_one_groups_pods_is_said_of_no_others():
    plain = _pod_specs(rendered(job_manifest()))
    for placed, (section, field) in PLACED.items():
        manifest = job_manifest()
        manifest["spec"][section][field] = placement_of(placed)
        made = _pod_specs(rendered(manifest))
        changed = {group for group, template in made.items() if template != plain[group]}
        assert changed == ({"retriever", "prepare"} if placed == "retriever" else {placed})


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, True),
        ({"ray_version": "2.52.0"}, True),
        ({"ray_version": "2.51.9"}, False),  # does not know tokens
        ({"ray_token_auth": False}, False),
    ],
    ids=["default", "since", "before", "off"],
)
def test_rays_own_ports_ask_for_a_token_where_ray_can(settings, asked):
    (job,) = (made for made in rendered(job_manifest(), **settings) if made["kind"] == "RayJob")
    assert job["spec"]["rayClusterSpec"].get("authOptions") == ({"mode": "token"} if asked else None)


def test_a_models_claim_is_mounted_read_only_in_every_pod():
    manifest = copy.deepcopy(FULL)
    manifest["spec"]["model"]["source"] = {"type": "persistentVolumeClaim", "claimName": "models"}
    for group, template in _pod_specs(rendered(manifest)).items():
        spec = template["spec"]
        container = spec["containers"][0]
        volume = {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}
        assert volume in spec["volumes"], group
        assert {"name": "model", "mountPath": "/rljob-model", "readOnly": True} in container["volumeMounts"]
        if group not in ("retriever", "prepare"):
            assert {"name": "RLJOB_MODEL_DIR", "value": "/rljob-model"} in container["env"]
