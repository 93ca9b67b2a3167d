"""`rljob top`: the jobs that are alive, what they do now, refreshed."""

import time
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rljob_api.errors import UserError

from rljob_cli.brief import FINISHED, age, brief
from rljob_cli.cluster import Cluster
from rljob_cli.local import Output
from rljob_cli.output import Format, console, emit, table
from rljob_cli.remote import Context, Namespace

ORDER = ("Running", "Suspending", "Starting", "Preparing", "Retrying", "Queued", "Pending", "Suspended", *FINISHED)
COLUMNS = (
    "NAMESPACE", "NAME", "PHASE", "STAGE", "STEP", "REWARD", "TOK/S", "GOODPUT", "GPUS", "ATTEMPT", "SEEN", "AGE",
)  # fmt: skip


def top(
    namespace: Namespace = None,
    context: Context = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="RLJobs of all namespaces.")] = False,
    finished: Annotated[bool, typer.Option("--finished", help="Show jobs that have finished as well.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the table once and end.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.5, help="Seconds between two looks.")] = 2.0,
    output: Output = Format.text,
) -> None:
    """Show live jobs, running ones first: step, reward, tokens/s, goodput, GPUs. SEEN: since the driver last spoke."""
    cluster = Cluster(namespace, context)
    if output is not Format.text or once:
        jobs = _jobs(cluster, all_namespaces, finished)
        emit({"items": jobs, "totals": totals(jobs)}, output, lambda: console().print(view(jobs)))
        return
    if not console().is_terminal:
        raise UserError("standard output is not a terminal", hint="give --once, or -o json")
    with Live(view(_jobs(cluster, all_namespaces, finished)), console=console(), auto_refresh=False) as live:
        while True:  # Until the user interrupts.
            live.refresh()
            time.sleep(interval)
            live.update(view(_jobs(cluster, all_namespaces, finished)))


def _jobs(cluster: Cluster, everywhere: bool, finished: bool) -> list[dict[str, Any]]:
    jobs = [brief(job) for job in cluster.jobs(all_namespaces=everywhere)]
    return ordered(job for job in jobs if finished or job["phase"] not in FINISHED)


def ordered(jobs: Any) -> list[dict[str, Any]]:
    """Running jobs first, then those that will run, by name."""
    return sorted(jobs, key=lambda job: (ORDER.index(job["phase"]), job["namespace"] or "", job["name"]))


def totals(jobs: list[dict[str, Any]]) -> dict[str, float]:
    """Jobs, and what the running ones hold and make together."""
    running = [job for job in jobs if job["phase"] == "Running"]
    return {
        "jobs": len(jobs),
        "running": len(running),
        "gpus": sum(job["gpus"] or 0 for job in running),
        "tokensPerSecond": sum(float(job["tokensPerSecond"] or 0) for job in running),
    }


def view(jobs: list[dict[str, Any]]) -> Table:
    """The table."""
    sums = totals(jobs)
    title = (
        f"{sums['jobs']} jobs, {sums['running']} running, {sums['gpus']} GPUs, {sums['tokensPerSecond']:,.0f} tokens/s"
    )
    rows = [
        [
            job["namespace"], job["name"], job["phase"], job["stage"] or None, job["step"], job["reward"],
            job["tokensPerSecond"], percent(job["goodput"]), job["gpus"], job["attempt"],
            age(job["lastProgressTime"]), age(job["created"]),
        ]
        for job in jobs
    ]  # fmt: skip
    return table(COLUMNS, rows, title=title)


def percent(share: str | None) -> str | None:
    """A share as people read it."""
    return None if share is None else f"{float(share):.0%}"
