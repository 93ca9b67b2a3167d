"""`python -m benchmarks.scale`: see docs/scale.md. JSON lines on standard output, kept under benchmarks/results/."""

import os

os.environ.setdefault("RLJOB_CLUSTER_INDEX", "63")  # beside whatever cluster is up

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable

from benchmarks import _results
from benchmarks.scale.audit import Requests
from benchmarks.scale.cluster import Machine, machine
from benchmarks.scale.measure import Half, Until, bare, idle, ours, say
from benchmarks.scale.watching import connected
from e2e.cluster.run import ClusterError

READY_RATIO_GOAL, CPU_RATIO_GOAL = 1.8, 1.0
WRITES_BEYOND_CHILDREN_GOAL = 10.0
RSS_GOAL, RESTART_SECONDS_GOAL = 400.0, 60.0


def lines(count: int, one: Half, other: Half) -> list[dict[str, object]]:
    """The results, goals where there are any."""
    per = 1000 / count
    writes = other.operator_requests.writes / count
    return [
        _line("ready_ratio", other.ready_seconds / one.ready_seconds, "ratio", READY_RATIO_GOAL),
        _line("ready_seconds_bare", one.ready_seconds, "s"),
        _line("ready_seconds_rljobs", other.ready_seconds, "s"),
        _line("children_seconds_bare", one.children_seconds, "s"),
        _line("children_seconds_rljobs", other.children_seconds, "s"),
        _line("running_seconds_bare", one.running_seconds, "s"),
        _line("running_seconds_rljobs", other.running_seconds, "s"),
        _line("end_seconds_bare", one.end_seconds, "s"),
        _line("end_seconds_rljobs", other.end_seconds, "s"),
        _line("operator_cpu_to_kuberay_cpu", other.operator_cpu / other.kuberay_cpu, "ratio", CPU_RATIO_GOAL),
        _line("operator_cpu_per_1000_jobs", other.operator_cpu * per, "s"),
        _line("kuberay_cpu_per_1000_jobs", other.kuberay_cpu * per, "s"),
        _line("kuberay_cpu_per_1000_jobs_bare", one.kuberay_cpu * per, "s"),
        _line("operator_life_cpu_per_1000_jobs", other.operator_life_cpu * per, "s"),
        _line("kuberay_life_cpu_per_1000_jobs", other.kuberay_life_cpu * per, "s"),
        _line("operator_idle_cores", other.operator_idle_cpu, "cores"),
        _line("operator_requests_per_job", other.operator_requests.total / count, "requests"),
        _line("operator_events_per_job", other.operator_requests.events / count, "writes"),
        _line("operator_writes_per_job", writes, "writes"),
        _line("operator_children_per_job", other.children, "objects"),
        _line("operator_writes_beyond_children", writes - other.children, "writes", WRITES_BEYOND_CHILDREN_GOAL),
        _line("kuberay_requests_per_job", other.kuberay_requests / count, "requests"),
        _line("kuberay_requests_per_job_bare", one.kuberay_requests / count, "requests"),
        _line("operator_rss", other.operator_rss, "MB", RSS_GOAL),
        _line("kuberay_rss", other.kuberay_rss, "MB"),
        _line("restart_seconds", other.restart_seconds, "s", RESTART_SECONDS_GOAL),
        _line("restart_writes", float(other.restart_writes), "writes", 0.0),
        _line("restart_cpu", other.restart_cpu, "s"),
        _line("restart_rss", other.restart_rss, "MB", RSS_GOAL),
    ]


def lines_until(until: Until, count: int, one: Half, other: Half) -> list[dict[str, object]]:
    """The results of halves that end before the jobs do."""

    def took(half: Half) -> float:
        return half.clusters_seconds if until == "clusters" else half.ready_seconds

    def line(name: str, value: float, unit: str, goal: float | None = None) -> dict[str, object]:
        return _line(f"until_{until}_{name}", value, unit, goal)

    goal = READY_RATIO_GOAL if until == "ready" else None
    requests = other.operator_requests
    return [
        line("ratio", took(other) / took(one), "ratio", goal),
        line("seconds_bare", took(one), "s"),
        line("seconds_rljobs", took(other), "s"),
        line("operator_cpu_to_kuberay_cpu", other.operator_cpu / other.kuberay_cpu, "ratio", CPU_RATIO_GOAL),
        line("operator_cpu", other.operator_cpu, "s"),
        line("kuberay_cpu", other.kuberay_cpu, "s"),
        line("kuberay_cpu_bare", one.kuberay_cpu, "s"),
        line("operator_requests_per_job", requests.total / count, "requests"),
        line("operator_writes_per_job", requests.writes / count, "writes"),
        line("operator_children_per_job", other.children, "objects"),
        line("kuberay_requests_per_job", other.kuberay_requests / count, "requests"),
        line("kuberay_requests_per_job_bare", one.kuberay_requests / count, "requests"),
        line("operator_rss", other.operator_rss, "MB", RSS_GOAL),
        line("kuberay_rss", other.kuberay_rss, "MB"),
        line("restart_seconds", other.restart_seconds, "s", RESTART_SECONDS_GOAL),
        line("restart_writes", float(other.restart_writes), "writes"),
        line("restart_cpu", other.restart_cpu, "s"),
        line("restart_rss", other.restart_rss, "MB", RSS_GOAL),
    ]


def idle_lines(count: int, half: Half) -> list[dict[str, object]]:
    """The results of jobs to which nothing happens."""
    return [
        _line("idle_children_seconds", half.children_seconds, "s"),
        _line("idle_operator_cores", half.operator_idle_cpu, "cores"),
        _line("idle_operator_rss", half.operator_rss, "MB", RSS_GOAL),
        _line("idle_restart_seconds", half.restart_seconds, "s", RESTART_SECONDS_GOAL),
        _line("idle_restart_writes", float(half.restart_writes), "writes", 0.0),
        _line("idle_restart_cpu", half.restart_cpu, "s"),
        _line("idle_restart_rss", half.restart_rss, "MB", RSS_GOAL),
    ]


def _line(name: str, value: float, unit: str, goal: float | None = None) -> dict[str, object]:
    line: dict[str, object] = {"name": f"scale_{name}", "value": round(value, 3), "unit": unit}
    return line if goal is None else line | {"goal": goal, "met": round(value, 3) <= goal}


def _say_requests(what: str, requests: Requests, jobs: int) -> None:
    say(f"{what}: " + ", ".join(f"{kind} {number / jobs:.2f}" for kind, number in requests.by_kind.most_common()))


async def measure(on: Machine, count: int, retriever: int, *, only_idle: bool = False) -> list[dict[str, object]]:
    """All halves on one cluster."""
    async with connected(on.admin) as kube:
        if only_idle:
            return [{"jobs": count} | line for line in idle_lines(count, await idle(on, kube, count, "idle"))]
        one = await bare(on, kube, count, "bare")
        other = await ours(on, kube, count, "ours")
        found = lines(count, one, other)
        _say_requests("requests", other.operator_requests, count)
        if retriever:
            third = await ours(on, kube, retriever, "retriever", retriever=True)
            _say_requests("requests with a retriever", third.operator_requests, retriever)
            writes = third.operator_requests.writes / retriever
            found += [
                line | {"jobs": retriever}
                for line in (
                    _line("retriever_operator_writes_per_job", writes, "writes"),
                    _line(
                        "retriever_operator_writes_beyond_children",
                        writes - third.children,
                        "writes",
                        WRITES_BEYOND_CHILDREN_GOAL,
                    ),
                )
            ]
    return [{"jobs": count} | line for line in found]


async def _half(on: Machine, count: int, which: Callable[..., Awaitable[Half]], namespace: str, until: Until) -> Half:
    async with connected(on.admin) as kube:
        return await which(on, kube, count, namespace, until=until)


def measure_until(until: Until, count: int) -> list[dict[str, object]]:
    """Both halves, each on a cluster of its own: nothing has to be deleted."""
    halves = []
    for which, namespace in ((bare, "bare"), (ours, "ours")):
        with machine() as on:
            halves.append(asyncio.run(_half(on, count, which, namespace, until)))
    return [{"jobs": count} | line for line in lines_until(until, count, *halves)]


def main() -> int:
    """Exit code 1 when a goal is missed, 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="jobs of each half (1000)")
    parser.add_argument("--retriever-jobs", type=int, default=50, help="jobs with a retriever, for their writes (50)")
    parser.add_argument("--idle", action="store_true", help="only jobs to which nothing happens: memory and a restart")
    parser.add_argument(
        "--until", choices=["clusters", "ready"], help="only until there are all RayClusters, or all pods are ready"
    )
    parser.add_argument("--no-keep", action="store_true", help="print the lines alone")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the cluster goes, too
    load = os.getloadavg()[0]
    try:
        if options.until:
            found = measure_until(options.until, options.jobs)
        else:
            with machine() as on:
                found = asyncio.run(measure(on, options.jobs, options.retriever_jobs, only_idle=options.idle))
    except (ClusterError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in found:
        print(json.dumps(line), flush=True)
    if not options.no_keep:
        about = _results.about() | {"load_before": round(load, 1)}
        with _results.target().open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line | about) + "\n" for line in found)
    return 0 if all(line.get("met") is not False for line in found) else 1


if __name__ == "__main__":
    sys.exit(main())
