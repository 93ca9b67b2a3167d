"""Commands that talk to a cluster: submit, status, logs, suspend, resume."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rljob_api.errors import ManifestError, UserError
from rljob_api.rules.availability import unavailable
from rljob_api.rules.checks import inconsistent

from rljob_cli.brief import age, brief
from rljob_cli.cluster import Cluster, Obj
from rljob_cli.exits import FAILED, OK, SUSPENDED, ClusterError
from rljob_cli.local import File, Output, Overlays, Sets
from rljob_cli.manifest import load_manifest
from rljob_cli.output import Format, console, emit, table, warning

POLL_SECONDS = 2.0
DAY = 86400

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace; by default that of the kubeconfig's context.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the RLJob.")]
Timeout = Annotated[int, typer.Option("--timeout", min=1, help="Give up waiting after so many seconds.")]


class DryRun(StrEnum):
    """Where a dry run ends."""

    none = "none"
    server = "server"


class Role(StrEnum):
    """Whose logs."""

    driver = "driver"
    trainer = "trainer"
    rollout = "rollout"
    retriever = "retriever"


def submit(
    file: File,
    namespace: Namespace = None,
    context: Context = None,
    overlays: Overlays = None,
    sets: Sets = None,
    dry_run: Annotated[
        DryRun, typer.Option("--dry-run", help="server: the apiserver checks it and stores nothing.")
    ] = DryRun.none,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has finished or is suspended.")] = False,
    timeout: Timeout = DAY,
    output: Output = Format.text,
) -> None:
    """Send a job to the cluster (server-side apply, unknown fields refused)."""
    manifest = load_manifest(file, sets, overlays)
    problems = inconsistent(manifest.job.spec)
    if problems:
        raise ManifestError(manifest.source, manifest.located(problems))
    for problem in unavailable(manifest.job.spec):
        warning(f"{problem} (the operator of the cluster may differ)")
    cluster = Cluster(namespace or manifest.job.metadata.namespace, context)
    body = manifest.raw | {"metadata": manifest.raw["metadata"] | {"namespace": cluster.namespace}}
    body.pop("status", None)
    stored = cluster.apply(body, dry_run=dry_run is DryRun.server)
    name = stored["metadata"]["name"]
    if wait and dry_run is DryRun.none:
        raise typer.Exit(_wait(cluster, name, timeout, output))
    said = "is accepted (dry run)" if dry_run is DryRun.server else "submitted"
    emit(
        brief(stored),
        output,
        lambda: console().print(f"RLJob {escape(name)} {said} in namespace {escape(cluster.namespace)}"),
    )


def _wait(cluster: Cluster, name: str, timeout: int, output: Format) -> int:
    last = ""
    for job in _polled(cluster, name, timeout):
        data = brief(job)
        line = f"{data['phase']} {data['step'] or ''} {data['message'] or ''}".strip()
        if output is Format.text and line != last:
            console().print(f"{datetime.now(UTC):%H:%M:%SZ} {escape(line)}")
            last = line
        if data["phase"] in ("Succeeded", "Failed", "Suspended"):
            emit(data, output, lambda: None)
            return {"Succeeded": OK, "Failed": FAILED, "Suspended": SUSPENDED}[data["phase"]]
        refusal = next((c for c in data["conditions"] if c["type"] == "Accepted" and c["status"] == "False"), None)
        if refusal:
            raise UserError(f"the operator does not accept RLJob {name}: {refusal['message']}")
    raise ClusterError(f"RLJob {name} has not finished within {timeout} s (it goes on)")


def _polled(cluster: Cluster, name: str, timeout: int) -> Iterator[Obj]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        yield cluster.get(name)
        time.sleep(POLL_SECONDS)


def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of the RLJob; all when left out.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="RLJobs of all namespaces.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until interrupted.")] = False,
    output: Output = Format.text,
) -> None:
    """Show jobs: phase, step, reward, tokens per second, conditions."""
    cluster = Cluster(namespace, context)
    if watch and output is not Format.text:
        raise UserError("--watch shows text only; leave -o out")
    if watch:
        with Live(_view(cluster, name, all_namespaces), console=console(), auto_refresh=False) as live:
            while True:  # Until the user interrupts.
                time.sleep(POLL_SECONDS)
                live.update(_view(cluster, name, all_namespaces), refresh=True)
    if name:
        job = cluster.get(name)
        emit(brief(job), output, lambda: console().print(_details(brief(job))))
        return
    jobs = [brief(job) for job in cluster.jobs(all_namespaces=all_namespaces)]
    nowhere = "all namespaces" if all_namespaces else f"namespace {cluster.namespace}"
    emit(
        {"items": jobs},
        output,
        lambda: console().print(_listing(jobs) if jobs else f"no RLJobs in {escape(nowhere)}"),
    )


def _view(cluster: Cluster, name: str | None, everywhere: bool) -> Table:
    if name:
        return _details(brief(cluster.get(name)))
    return _listing([brief(job) for job in cluster.jobs(all_namespaces=everywhere)])


def _listing(jobs: list[dict[str, Any]]) -> Table:
    keys = ("namespace", "name", "phase", "step", "reward", "tokensPerSecond", "attempt")
    columns = ("NAMESPACE", "NAME", "PHASE", "STEP", "REWARD", "TOK/S", "ATTEMPT", "AGE")
    return table(columns, [[*(job[key] for key in keys), age(job["created"])] for job in jobs])


def _details(job: dict[str, Any]) -> Table:
    rows: list[tuple[str, object]] = [
        ("name", job["name"]),
        ("namespace", job["namespace"]),
        ("phase", f"{job['phase']}{f' ({job["stage"]})' if job['stage'] else ''}"),
        ("step", job["step"]),
        ("reward", job["reward"]),
        ("tokens/s", job["tokensPerSecond"]),
        ("goodput", None if job["goodput"] is None else f"{float(job['goodput']):.0%}"),
        ("GPUs", job["gpus"]),
        ("pods ready", ", ".join(f"{k} {v.get('ready', 0)}/{v['desired']}" for k, v in job["pods"].items()) or None),
        ("attempt", f"{job['attempt']} ({job['failedAttempts']} failed)"),
        ("last commit", job["lastCommit"]),
        *((f"score {key}", value) for key, value in job["evaluation"].items()),
        ("message", job["message"] or None),
        ("last report", None if job["lastProgressTime"] is None else f"{age(job['lastProgressTime'])} ago"),
        *(
            (f"{c['type']}={c['status']}", f"{c.get('reason', '')}: {c.get('message', '')}".strip(": "))
            for c in job["conditions"]
        ),
        ("age", age(job["created"])),
    ]
    return table(("", ""), [(label, None if value is None else str(value)) for label, value in rows])


def logs(
    name: Name,
    role: Annotated[Role, typer.Option("--role", help="Whose log.")] = Role.driver,
    namespace: Namespace = None,
    context: Context = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=1, help="Begin so many lines before the end.")] = 200,
    output: Output = Format.text,
) -> None:
    """Print the log of the driver, or of the pods of one group; as JSON or YAML one document a line of the log."""
    cluster = Cluster(namespace, context)
    cluster.get(name)
    pods = cluster.pods(name, "head" if role is Role.driver else role.value)
    if not pods:
        raise ClusterError(
            f"RLJob {name} has no {role.value} pods now",
            hint="`rljob status` says why; driver.log and metrics.jsonl of every attempt stay in the job's directory",
        )
    # The driver's own words are in the head's log; of attempts that are gone none is left.
    chosen = pods[:1] if follow or role is Role.driver else pods
    if follow and len(chosen) < len(pods):
        warning(f"following {chosen[0].metadata.name}, the first of {len(pods)} {role.value} pods")
    for pod in chosen:
        lines = cluster.pod_log(pod.metadata.name, follow=follow, tail=tail)
        _print(lines, pod.metadata.name, output, prefix=f"{pod.metadata.name} | " if len(chosen) > 1 else "")


def readable(line: str) -> str:
    """A JSON line of our processes as people read it; any other line as it is."""
    if not line.startswith('{"time":'):
        return line
    try:
        entry = json.loads(line)
        moment = datetime.fromisoformat(entry["time"])
        where = " ".join(str(entry[key]) for key in ("role", "index") if key in entry)
        step = f" step {entry['step']}" if "step" in entry else ""
        text = f"{moment:%H:%M:%S} {entry['level'].upper():<7} {where}{step}: {entry['message']}"
        return f"{text}\n{entry['exception']}" if "exception" in entry else text
    except (ValueError, KeyError, TypeError, AttributeError):
        return line


def _print(lines: Iterator[str], pod: str, output: Format, *, prefix: str = "") -> None:
    for line in lines:
        if output is Format.text:
            print(f"{prefix}{readable(line)}", flush=True)
        else:  # JSON on one line is YAML as well
            end = "" if output is Format.json else "\n---"
            print(json.dumps({"pod": pod, "line": line}, ensure_ascii=False) + end, flush=True)


def suspend(name: Name, namespace: Namespace = None, context: Context = None, output: Output = Format.text) -> None:
    """Ask a job to commit and release its pods."""
    cluster = Cluster(namespace, context)
    job = cluster.suspend(name, suspend=True)
    emit(brief(job), output, lambda: console().print(f"RLJob {escape(name)} will commit and suspend"))


def resume(name: Name, namespace: Namespace = None, context: Context = None, output: Output = Format.text) -> None:
    """Let a suspended job, or one that learning health has paused, go on from its last commit."""
    cluster = Cluster(namespace, context)
    paused = ((cluster.get(name).get("status") or {}).get("paused") or {}).get("attempt")
    job = cluster.suspend(name, suspend=False, paused_attempt=paused)
    emit(brief(job), output, lambda: console().print(f"RLJob {escape(name)} will resume"))
