"""Record what a version of the project writes, and what it reads, for the tests of later versions.

    python operator/tests/compat/record.py v0.2.0                 # of the checkout that this lies in, at a release
    python operator/tests/compat/record.py b3c9bbf --of b3c9bbf   # of a commit, from a work tree of its own

Into `corpus/<name>`: jobs as the operator renders them, schemas of what the driver and the operator read, the command
lines that each entry point takes, progress, requests and preparation as they are written, and the directory of a tiny
job that has trained (it takes about a minute). It overwrites a corpus of that name; one of a released version is never
recorded anew.
"""

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CORPUS = HERE / "corpus"
ENTRY_POINTS = ("driver", "prepare", "cluster.prestop", "retriever.__main__", "retriever.build")
NAMESPACE, UID = "team", "11111111-2222-3333-4444-555555555555"
RESUME_FROM = "0002-0123abcd/commits/step-000040"
TIME = "2026-01-01T00:00:00Z"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--of", help="the commit to record; by default this checkout")
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tree:
        record(options.tree, CORPUS / options.name)
    elif options.of:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "tree"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--quiet", "--detach", str(tree), options.of], check=True)
            try:
                _in(tree, options.name)
            finally:
                subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    else:
        _in(ROOT, options.name)


def _in(tree: Path, name: str) -> None:
    """Record with the code of `tree`, in a process that imports it."""
    path = os.pathsep.join(map(str, (tree / "operator", tree / "trainer", tree)))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "KUBECONFIG": "/nonexistent"}
    command = [sys.executable, str(HERE / "record.py"), name, "--tree", str(tree)]
    subprocess.run(command, check=True, env=environment, cwd=tree, timeout=1800)


def record(tree: Path, into: Path) -> None:
    """Everything, with the code that is imported."""
    import rljob_trainer

    if not Path(rljob_trainer.__file__).is_relative_to(tree):
        raise SystemExit(f"rljob_trainer is imported from {rljob_trainer.__file__}, not from {tree}")
    shutil.rmtree(into, ignore_errors=True)
    _write(into / "contract.json", version())
    for name, manifest in manifests(tree).items():
        _write(into / "jobs" / f"{name}.json", job(manifest))
    for name, schema in schemas().items():
        _write(into / "schemas" / f"{name}.json", schema)
    _write(into / "entry_points.json", {name: options_of(name) for name in ENTRY_POINTS})
    for name, report in progress().items():
        _write(into / "progress" / f"{name}.json", report)
    _write(into / "requests.json", asyncio.run(requests(tree)))
    _write(into / "preparation.json", preparation())
    trained(tree, into / "trained")
    _write(into / "retrieve.json", retrieved(into / "trained"))


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def version() -> str:
    """The version of the contract; the first one had no name yet."""
    try:
        return str(importlib.import_module("rljob_api.contract.job_document").VERSION)
    except ModuleNotFoundError:
        return "1.0"


def manifests(tree: Path) -> dict[str, dict[str, Any]]:
    """The examples, alone and with their overlays, and a job that uses many fields."""
    from rljob_api.manifest.load import job_from, read
    from rljob_cli.manifest import merge

    examples = {path.stem: read(path) for path in sorted((tree / "examples").glob("*.yaml"))}
    found = dict(examples)
    for path in sorted((tree / "examples/overlays").glob("*.yaml")):
        recipe = path.stem.rpartition("-")[0]
        base = next(document for name, document in examples.items() if name.startswith(recipe))
        found[path.stem] = merge(base, read(path))
    found["many-fields"] = read(HERE / "many_fields.yaml")
    for document in found.values():
        job_from(document)
    return {name: document.value for name, document in found.items()}


def job(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the operator renders for a job that its pods, or a later operator, see."""
    from rljob_api.contract import labels
    from rljob_api.manifest.load import without_nulls
    from rljob_api.v1alpha1.job import RLJob
    from rljob_operator.resources import prepare, rayjob
    from rljob_operator.resources.children import Wanted, children
    from rljob_operator.resources.context import Context
    from rljob_operator.settings import Settings

    context = Context(RLJob.model_validate(without_nulls(manifest)), NAMESPACE, UID, Settings())
    made = children(context, Wanted(attempt=3, request={}))
    attempt, preparing = rayjob.ray_job(context, 3, RESUME_FROM), prepare.job(context)
    (config,) = (child for child in made if child["metadata"]["name"] == f"{context.name}-config")
    cluster = attempt["spec"]["rayClusterSpec"]
    pods = {"head": cluster["headGroupSpec"]["template"]}
    pods |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    deployment = next((child for child in made if child["kind"] == "Deployment"), None)
    if deployment:
        pods["retriever"] = deployment["spec"]["template"]
    if preparing:
        pods["prepare"] = preparing["spec"]["template"]
    digest = pods["retriever"]["metadata"]["annotations"][labels.CONFIG_DIGEST] if deployment else None
    return {
        "manifest": manifest,
        "meant": context.spec.to_api(),
        "document": json.loads(config["data"]["rljob.json"]),
        "entrypoint": attempt["spec"]["entrypoint"],
        "offered": {group["groupName"]: group["rayStartParams"]["resources"] for group in cluster["workerGroupSpecs"]},
        "containers": {f"{group}/{c['name']}": _container(c) for group, pod in pods.items() for c in _containers(pod)},
        "preparation": preparing["metadata"]["name"] if preparing else None,
        "retrieverDigest": digest,
    }


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def _container(container: dict[str, Any]) -> dict[str, Any]:
    env = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}
    before_end = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    mounts = sorted(mount["mountPath"] for mount in container.get("volumeMounts", []))
    probes = sorted({probe["httpGet"]["path"] for key, probe in container.items() if key.endswith("Probe")})
    return {
        "command": container.get("command"),
        "preStop": before_end,
        "env": env,
        "mounts": mounts,
        "probes": probes,
        "ports": sorted(port["name"] for port in container.get("ports", [])),
    }


def schemas() -> dict[str, dict[str, Any]]:
    """What is read, as JSON schemas: the job by its processes (strictly), reports by the operator."""
    from rljob_api.contract.progress import Preparation, Progress
    from rljob_api.v1alpha1.job import RLJob
    from rljob_trainer.retriever.app import RetrieveRequest

    models = {"job": RLJob, "progress": Progress, "preparation": Preparation, "retrieve": RetrieveRequest}
    return {name: _bare(model.model_json_schema(by_alias=True)) for name, model in models.items()}


def _bare(schema: Any) -> Any:
    """Without what describes and does not decide."""
    if isinstance(schema, list):
        return [_bare(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _bare(child) for name, child in part.items()} if key in ("properties", "$defs") else _bare(part)
        for key, part in schema.items()
        if key not in ("description", "title")
    }


class _Captured(Exception):  # noqa: N818 - not an error
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def options_of(module: str) -> list[dict[str, Any]]:
    """The options that an entry point's parser takes."""

    def capture(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        raise _Captured(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", capture):
        try:
            importlib.import_module(f"rljob_trainer.{module}").main()
        except _Captured as captured:
            parser = captured.parser
    return [
        {
            "flags": list(action.option_strings),
            "required": action.required,
            "takesValue": action.nargs != 0,
            "type": getattr(action.type, "__name__", None),
        }
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]


def progress() -> dict[str, dict[str, Any]]:
    """Reports as the driver writes them: at its start, with every field, and at each of its ends."""
    from rljob_trainer import driver
    from rljob_trainer.checkpoint.loop_state import LoopState
    from rljob_trainer.metrics.display import make_display
    from rljob_trainer.orchestrator.recorder import Recorder
    from rljob_trainer.watch.stalls import Stall

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        arguments = ["--job", "j", "--dir", folder, "--attempt", "3", "--incarnation", "0003-0123abcd"]
        reporter = driver._progress(driver.parse(arguments), None)
        found = {"starting": reporter.snapshot()}
        recorder = Recorder(directory, "demo", 10, reporter, make_display("demo", quiet=True))
        state = LoopState("RL", step=6, rollout=6, evaluations={"held-out/rollout_4": {"score": 0.3}})
        state.early_stop = {"hits": 1, "value": 0.9, "step": 6, "target": "held-out/score >= 0.9"}
        recorder.stage("RL", 6, 10)
        seconds = {"generate": 3.0, "train": 2.0, "total": 6.0}
        values = {"reward": 0.25, "tokens_per_second": 1234.5, "staleness_max": 1.0}
        recorder.rollout(state, 10, values, seconds)
        recorder.evaluation(state, "held-out/rollout_4", {"score": 0.3})
        recorder.committed(state, "0003-0123abcd/commits/step-000006")
        recorder.health({"RewardStalled": {"since": 3, "policy": "Warn", "message": "no better for 50 rollouts"}})
        recorder.stalled(Stall("rank 1", "train_step", 120.0, 95.0, "loss.py:7"), "attempts/0003-0123abcd/stacks/1.txt")
        reporter.update(engines={"serving": ["demo-3-rollout-0"], "drained": ["demo-3-rollout-1"]})
        found["running"] = reporter.snapshot()
        ends = {
            "suspended": ("Suspended", 4, "Suspended", "suspended as asked"),
            "paused": ("Suspended", 6, "Paused", "paused: the reward stands still"),
            "rolled-back": ("Suspended", 7, "RolledBack", "rolled back to step 4"),
            "failed": ("Failed", 1, "WorkerLost", "rank 1 was lost"),
            "user-error": ("Failed", 2, "UserError", "spec.data.train.path: no such file"),
        }
        for name, (its, code, reason, message) in ends.items():
            found[name] = reporter.snapshot() | {"state": its, "exitCode": code, "reason": reason, "message": message}
        recorder.stopped_early(state)
        recorder.stage("Done", 6, 10)
        done = {"state": "Succeeded", "exitCode": 0, "reason": "Succeeded", "message": "", "step": 6}
        found["stopped-early"] = reporter.snapshot() | done
        found["succeeded"] = reporter.snapshot() | done | {"step": 10, "earlyStop": None}
        recorder.close()
        reporter.close()
    for report in found.values():
        report["time"] = TIME
        if report["lastCommit"]:
            report["lastCommit"]["time"] = TIME
    return found


async def requests(tree: Path) -> list[dict[str, Any]]:
    """What the operator asks of a driver, and what the driver of the same version makes of it."""
    from rljob_api.contract.request import wants_scale, wants_suspend

    world_module = _module(tree / "operator/tests/conftest.py", "recorded_world")
    rollout = world_module.job_manifest()["spec"]["rollout"] | {"replicas": 3}
    world = world_module.World(world_module.job_manifest(rollout=rollout))
    asked: list[dict[str, Any]] = []

    async def note() -> None:
        await world.settle()
        text = world.get("ConfigMap", "demo-control")["data"]["request.json"]
        scale = wants_scale(text, 1)
        answer = {"engines": scale.engines, "drain": sorted(scale.drain)} if scale else None
        asked.append({"request": json.loads(text), "suspend": wants_suspend(text, 1), "scale": answer})

    await note()
    world.retriever_ready()
    await world.settle()
    pods = [f"demo-1-abcde-rollout-{index}" for index in range(3)]
    world.running(1, engines={"serving": pods, "drained": []})
    await note()
    world.change(rollout={"replicas": 1})
    await note()
    world.change(rollout={"replicas": 2})
    await note()
    world.change(lifecycle={"suspend": True})
    await note()
    return asked


def _module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def preparation() -> list[dict[str, Any]]:
    """Reports of the preparation."""
    from rljob_api.contract.progress import Preparation

    said = [("data", 0, 0), ("download of wiki.jsonl.gz", 3 << 30, 0), ("index", 12 << 30, 60 << 30)]
    return [json.loads(Preparation.of(*report).to_json()) for report in said]


def trained(tree: Path, directory: Path) -> None:
    """The directory of a tiny job: its world, identity and index, and its commit before the last step."""
    from rljob_api.manifest.load import load
    from rljob_trainer.orchestrator.job_directory import claim
    from rljob_trainer.retriever.build import build_index

    tiny = yaml.safe_load((HERE / "tiny.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        working = Path(folder) / "job"
        working.mkdir()
        manifest = working / "rljob.json"
        manifest.write_text(json.dumps(tiny, indent=1), encoding="utf-8")
        job = load(manifest)
        _run("prepare", "--job", str(manifest), "--dir", str(working))
        if job.spec.retriever is None:
            raise SystemExit("tiny.yaml has no retriever")
        build_index(job.spec.retriever, str(working))
        claim(working, job, may_resume=False)
        local = ["--job", str(manifest), "--dir", str(working), "--local", "--quiet"]
        _run("driver", *local, "--attempt", "1", "--incarnation", "0001-0123abcd")
        commits = sorted((working / "attempts/0001-0123abcd/commits").iterdir())
        directory.mkdir(parents=True)
        for name in ("rljob.json", "job.json", "prepared.json"):
            shutil.copy(working / name, directory / name)
        shutil.copytree(working / "world", directory / "world", ignore=shutil.ignore_patterns("*.lock"))
        shutil.copytree(commits[-2], directory / commits[-2].relative_to(working))
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            if re.search(rb"/tmp/tmp|/home/|/root/", path.read_bytes()):
                raise SystemExit(f"{path} names a folder of this machine")


def _run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"rljob_trainer.{module}", *arguments], check=True, timeout=900)


def retrieved(directory: Path) -> dict[str, Any]:
    """One exchange of the trainer with the retriever, over the index of the tiny job."""
    from fastapi.testclient import TestClient
    from rljob_api.manifest.load import load
    from rljob_trainer.retriever.app import create_app
    from rljob_trainer.retriever.search import load_searcher

    job = load(directory / "rljob.json")
    if job.spec.retriever is None:
        raise SystemExit("tiny.yaml has no retriever")
    spec = job.spec.retriever
    # As `rollout.retriever_client` asks; the test compares it with the schema of what the service takes.
    request = {"queries": ["who", "where was she born"], "topk": 2, "return_scores": True}
    with TestClient(create_app(lambda: load_searcher(spec, str(directory)))) as client:
        deadline = time.monotonic() + 60.0
        while client.get("/readyz").status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        answer = client.post("/retrieve", json=request)
    answer.raise_for_status()
    return {"request": request, "answer": answer.json()}


if __name__ == "__main__":
    main()
