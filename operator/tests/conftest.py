"""A cluster in memory for the operator's unit tests: the apiserver's side of `Kube`, and a world that plays KubeRay,
kubelet and driver. Only the I/O edge is replaced; everything that decides is the real code."""

import asyncio
import copy
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rljob_api.contract import labels, names
from rljob_operator.controller.reconcile import reconcile
from rljob_operator.kube.client import ApiError, Names, Objects
from rljob_operator.kube.objects import Kind, Obj, quantity, rfc3339
from rljob_operator.kube.trimming import trim
from rljob_operator.settings import Settings
from rljob_operator.state.refusals import Refusals

NAMESPACE = "team"
UID = "11111111-2222-3333-4444-555555555555"
RAY = ("RayJob", "RayCluster")


def job_manifest(name: str = "demo", **spec: Any) -> Obj:
    """A job that this version accepts: SFT, then GRPO with search, on CPU."""
    base: Obj = {
        "model": {
            "randomInit": {
                "hiddenSize": 32,
                "maxPositionEmbeddings": 4096,
                "numAttentionHeads": 4,
                "numKeyValueHeads": 4,
            },
            "tokenizerPath": "world/tokenizer",
            "dtype": "float32",
        },
        "data": {
            "prepare": {"function": "rljob_trainer.quickstart.world:prepare", "args": {"seed": 7}},
            "train": {"path": "world/train.jsonl", "applyChatTemplate": False},
        },
        "rollout": {
            "engine": "torch",
            "numRollout": 10,
            "batchSize": 4,
            "nSamplesPerPrompt": 2,
            "generate": {"type": "search", "search": {"maxTurns": 3}},
            "sampling": {"maxResponseLength": 64},
        },
        "reward": {"functions": [{"name": "em", "args": {"formatScore": 0.2}}]},
        "trainer": {"backend": "fsdp"},
        "retriever": {
            "corpus": "world/corpus.jsonl",
            "index": {"path": "world/index.faiss"},
            "encoder": {"type": "hashed", "dimension": 64},
        },
    }
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": base | spec,
    }


class Killed(BaseException):
    """The operator was killed; no handler of its own sees it."""


class FakeKube:
    """The apiserver's side of `Kube`, for one namespace."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Obj] = {}
        self.events: list[Obj] = []
        self.kuberay = True
        self.jobs_complete = True
        """The Job that prepares ends at once, as when all is there already."""
        self.writes: list[str] = []
        self.die_after: int | None = None
        self.refused: dict[tuple[str, str], ApiError] = {}
        """Writes that are refused, by verb (apply, create, patch, delete) and kind."""
        self.tries: list[str] = []
        """Writes that were refused."""
        self.version = 0
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def _stamp(self, obj: Obj) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)

    def refuse(self, verb: str, kind: str, status: int | None, message: str) -> None:
        """From now on every write of a verb to a kind is refused."""
        self.refused[verb, kind] = ApiError(f"{verb} {kind}", status, message)

    def _admit(self, verb: str, kind: str, name: str) -> None:
        if error := self.refused.get((verb, kind)):
            self.tries.append(f"{verb} {kind}/{name}")
            raise error

    def _wrote(self, what: str) -> None:
        self.writes.append(what)
        if self.die_after is not None and len(self.writes) == self.die_after:
            self.die_after = None
            raise Killed(what)

    def add(self, obj: Obj) -> Obj:
        """Store an object as its creator would."""
        body = copy.deepcopy(obj)
        kind, name = body["kind"], body["metadata"]["name"]
        metadata = body["metadata"]
        metadata.setdefault("uid", UID if kind == "RLJob" else f"uid-{kind}-{name}-{self.version}")
        metadata.setdefault("namespace", NAMESPACE)
        metadata["generation"] = 1
        metadata["creationTimestamp"] = rfc3339(self.now)
        self._stamp(body)
        self.objects[kind, name] = body
        return body

    def clock(self) -> datetime:
        return self.now

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        await asyncio.sleep(0)
        return copy.deepcopy(self.objects.get((kind.kind, name)))

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> list[Obj] | None:
        await asyncio.sleep(0)
        if kind.kind in RAY and not self.kuberay:
            return None
        wanted = dict(part.split("=") for part in selector.split(",") if part)
        return [
            trim(copy.deepcopy(obj))
            for (its, _), obj in self.objects.items()
            if its == kind.kind and wanted.items() <= (obj["metadata"].get("labels") or {}).items()
        ]

    async def names(self, kind: Kind, namespace: str | None) -> Names:
        found = await self.list(kind, namespace) or []
        return [(obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in found]

    async def lists(self, kinds: Sequence[Kind], namespace: str, selector: str) -> Sequence[Objects | None]:
        return [await self.list(kind, namespace, selector) for kind in kinds]

    async def apply(self, obj: Obj, *, absent: bool = False) -> Obj:
        key = (obj["kind"], obj["metadata"]["name"])
        live = self.objects.get(key)
        if live is not None and absent:
            raise ApiError("apply", 409, "the object has been modified", "Conflict")
        self._admit("apply", *key)
        if live is not None and key[0] == "PersistentVolumeClaim" and _size(obj) < _size(live):
            raise ApiError("apply", 422, "spec.resources.requests.storage: field can not be less than previous value")
        if live is None:
            live = self.add(obj)
        else:
            merged = _merge(live, obj)
            if merged.get("spec") != live.get("spec"):
                merged["metadata"]["generation"] += 1
            self._stamp(merged)
            live = self.objects[key] = merged
        self._wrote(f"apply {key[0]}/{key[1]}")
        return copy.deepcopy(live)

    async def create(self, obj: Obj) -> Obj:
        if obj["kind"] == "Event":
            if any(e["metadata"]["name"] == obj["metadata"]["name"] for e in self.events):
                raise ApiError("create", 409, "exists")
            self.events.append(copy.deepcopy(obj))
            self._wrote(f"event {obj['reason']}")
            return obj
        key = (obj["kind"], obj["metadata"]["name"])
        if key in self.objects:
            raise ApiError("create", 409, "exists", "AlreadyExists")
        self._admit("create", *key)
        body = self.add(obj)
        if key[0] == "Job" and self.jobs_complete:
            body["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
        self._wrote(f"create {key[0]}/{key[1]}")
        return copy.deepcopy(body)

    async def patch(self, kind: Kind, namespace: str, name: str, body: Any, subresource: str | None = None) -> Obj:
        live = self.objects.get((kind.kind, name))
        if live is None:
            raise ApiError("patch", 404, "not found")
        self._admit("patch", kind.kind, name)
        if isinstance(body, list):
            _json_patch(live, body)
        else:
            version = (body.get("metadata") or {}).pop("resourceVersion", None)
            if version is not None and version != live["metadata"]["resourceVersion"]:
                raise ApiError("patch", 409, "the object has been modified", "Conflict")
            _merge_patch(live, body)
        self._stamp(live)
        if live["metadata"].get("deletionTimestamp") and not live["metadata"].get("finalizers"):
            del self.objects[kind.kind, name]
        self._wrote(f"patch {kind.kind}/{name}{'/' + subresource if subresource else ''}")
        return copy.deepcopy(live)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        live = self.objects.get((kind.kind, name))
        if live is None or live["metadata"]["uid"] != uid:
            return
        self._admit("delete", kind.kind, name)
        if live["metadata"].get("finalizers"):
            live["metadata"]["deletionTimestamp"] = rfc3339(self.now)
            self._stamp(live)
        else:
            del self.objects[kind.kind, name]
        self._wrote(f"delete {kind.kind}/{name}")


class World:
    """A fake cluster, the operator on it, and everybody else: user, KubeRay, kubelet, driver."""

    def __init__(self, manifest: Obj | None = None, **settings: Any) -> None:
        self.kube = FakeKube()
        self.settings = Settings(**settings)
        self.refusals = self._new_refusals()
        self.name = ""
        if manifest is not None:
            self.apply(manifest)

    # The user

    def apply(self, manifest: Obj) -> None:
        self.name = manifest["metadata"]["name"]
        self.kube.add(manifest)

    def change(self, **spec: Any) -> None:
        job = self.kube.objects["RLJob", self.name]
        for key, value in spec.items():
            job["spec"][key] = (job["spec"].get(key) or {}) | value if isinstance(value, dict) else value
        job["metadata"]["generation"] += 1
        self.kube._stamp(job)

    def delete(self) -> None:
        job = self.kube.objects["RLJob", self.name]
        job["metadata"]["deletionTimestamp"] = rfc3339(self.kube.now)
        if not job["metadata"].get("finalizers"):
            del self.kube.objects["RLJob", self.name]

    # The operator

    async def reconcile(self) -> float | None:
        after, _ = await reconcile(
            self.kube, NAMESPACE, self.name, self.settings, self.kube.now, refusals=self.refusals
        )
        return after

    def _new_refusals(self) -> Refusals:
        return Refusals(lambda: self.kube.now.timestamp())

    async def settle(self, limit: int = 25) -> None:
        """Reconcile until nothing is written any more; killed on the way, it simply starts again."""
        for _ in range(limit):
            before = len(self.kube.writes)
            try:
                await self.reconcile()
            except Killed:
                self.refusals = self._new_refusals()  # it was in the memory of the process
                continue
            except ApiError as error:
                if error.status != 409:
                    raise
                continue
            if len(self.kube.writes) == before:
                return
        raise AssertionError(f"does not settle: {self.kube.writes[-12:]}")

    def later(self, seconds: float) -> None:
        self.kube.now += timedelta(seconds=seconds)

    # Everybody else

    def retriever_ready(self) -> None:
        deployment = self.get("Deployment", names.retriever(self.name))
        replicas = deployment["spec"].setdefault("replicas", 1)  # the apiserver's default
        generation = deployment["metadata"]["generation"]
        deployment["status"] = {"observedGeneration": generation, "readyReplicas": replicas}

    def cluster_up(self, attempt: int = 1) -> None:
        """KubeRay has made the cluster, all pods are ready."""
        ray_job = self.get("RayJob", names.ray_job(self.name, attempt))
        cluster = f"{ray_job['metadata']['name']}-abcde"
        ray_job["status"] = {"jobDeploymentStatus": "Running", "rayClusterName": cluster}
        spec = ray_job["spec"]["rayClusterSpec"]
        self.kube.add(
            {
                "apiVersion": "ray.io/v1",
                "kind": "RayCluster",
                "metadata": {
                    "name": cluster,
                    "labels": ray_job["metadata"]["labels"],
                    "ownerReferences": [
                        {"kind": "RayJob", "uid": ray_job["metadata"]["uid"], "controller": True, "name": cluster}
                    ],
                },
                "spec": copy.deepcopy(spec),
            }
        )
        groups = [("head", spec["headGroupSpec"], 1)]
        groups += [(g["groupName"], g, g["replicas"]) for g in spec["workerGroupSpecs"]]
        for group, template, replicas in groups:
            for index in range(replicas):
                self.pod(f"{cluster}-{group}-{index}", template["template"]["metadata"]["labels"])

    def pod(self, name: str, its_labels: dict[str, str], **status: Any) -> Obj:
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        return self.kube.add(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": dict(its_labels)},
                "status": status or ready,
            }
        )

    def report(self, **progress: Any) -> None:
        """The driver writes its progress."""
        config_map = self.get("ConfigMap", names.progress(self.name))
        data = config_map.setdefault("data", {})
        report = json.loads(data.get("progress.json", "{}")) | progress
        data["progress.json"] = json.dumps(report)

    def running(self, attempt: int = 1, **progress: Any) -> None:
        """The cluster is up and the driver has reported."""
        self.cluster_up(attempt)
        base = {"attempt": attempt, "stage": "RL", "step": 3, "totalSteps": 10, "state": "Running", "exitCode": None}
        self.report(**(base | progress))

    def ray_job_ends(self, attempt: int, deployment: str, **status: Any) -> None:
        """KubeRay reports the end and takes the cluster away."""
        ray_job = self.get("RayJob", names.ray_job(self.name, attempt))
        ray_job["status"] = ray_job["status"] | {
            "jobDeploymentStatus": deployment, "endTime": rfc3339(self.kube.now), **status,
        }  # fmt: skip
        self.collect(attempt)

    def collect(self, attempt: int | None = None) -> None:
        """The garbage collector and the kubelet: clusters without RayJob and their pods are gone."""
        for (kind, name), obj in list(self.kube.objects.items()):
            number = (obj["metadata"].get("labels") or {}).get(labels.ATTEMPT)
            if kind not in ("RayCluster", "Pod") or number is None:
                continue
            orphaned = ("RayJob", names.ray_job(self.name, int(number))) not in self.kube.objects
            if orphaned or number == str(attempt):
                del self.kube.objects[kind, name]
        deployment = self.kube.objects.get(("Deployment", names.retriever(self.name)))
        if deployment is None or not deployment["spec"]["replicas"]:
            for pod in [n for (k, n), o in self.kube.objects.items() if k == "Pod" and _role(o) == "retriever"]:
                del self.kube.objects["Pod", pod]

    # Looking

    def get(self, kind: str, name: str) -> Obj:
        return self.kube.objects[kind, name]

    def has(self, kind: str, name: str) -> bool:
        return (kind, name) in self.kube.objects

    @property
    def status(self) -> Obj:
        return self.kube.objects["RLJob", self.name].get("status") or {}

    def condition(self, kind: str) -> Obj:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    @property
    def event_reasons(self) -> list[str]:
        return [event["reason"] for event in self.kube.events]

    def names(self, kind: str) -> list[str]:
        return sorted(name for its, name in self.kube.objects if its == kind)


def _size(claim: Obj) -> Decimal:
    size = quantity(claim["spec"]["resources"]["requests"]["storage"])
    assert size is not None
    return size


def _role(obj: Obj) -> str | None:
    role: str | None = (obj["metadata"].get("labels") or {}).get(labels.ROLE)
    return role


def _merge(live: Any, wanted: Any) -> Any:
    """As server-side apply, nearly: maps merge, lists are replaced."""
    if isinstance(live, dict) and isinstance(wanted, dict):
        merged = {key: _merge(live.get(key), value) for key, value in wanted.items()}
        return copy.deepcopy(live) | merged
    return copy.deepcopy(wanted)


def _merge_patch(live: Obj, patch: Obj) -> None:
    for key, value in patch.items():
        if value is None:
            live.pop(key, None)
        elif isinstance(value, dict) and isinstance(live.get(key), dict):
            _merge_patch(live[key], value)
        else:
            live[key] = copy.deepcopy(value)


def _json_patch(live: Obj, operations: list[Obj]) -> None:
    for operation in operations:
        *path, last = operation["path"].strip("/").split("/")
        target: Any = live
        for part in path:
            target = target[int(part) if isinstance(target, list) else part]
        if operation["op"] == "test":
            if target[last] != operation["value"]:
                raise ApiError("patch", 422, "test failed")
        else:
            target[last] = operation["value"]


@pytest.fixture
def manifest() -> Any:
    """Builds manifests: `manifest(name="demo", **spec)`."""
    return job_manifest


@pytest.fixture
def make_world() -> Any:
    """Builds worlds: `make_world(manifest, **settings)`."""
    return World


@pytest.fixture
def world() -> World:
    """A world with the usual job, just applied."""
    return World(job_manifest())


__all__ = ["FakeKube", "Killed", "World", "job_manifest"]
