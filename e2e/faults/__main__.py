"""`python -m e2e.faults`: the operator killed at every write of every lifecycle, on the control plane that is up."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from e2e import which_cluster
from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.faults.access import Access, Admin
from e2e.faults.kill import Outcome, Point, Suite
from e2e.faults.stories import LIFECYCLES
from e2e.faults.world import World


def sample(points: list[Point], size: int, seed: int) -> list[Point]:
    """A seeded choice that holds as many points of each story, or nearly."""
    chosen = random.Random(seed)
    by_story = {story: [p for p in points if p.story == story] for story in dict.fromkeys(p.story for p in points)}
    for its in by_story.values():
        chosen.shuffle(its)
    result: list[Point] = []
    while len(result) < min(size, len(points)):
        for its in by_story.values():
            if its and len(result) < size:
                result.append(its.pop())
    return result


async def kill_all(
    suite: Suite, stories: list[str], *, size: int | None, seed: int, at_once: int, storms: list[str]
) -> list[Outcome]:
    """Learn the stories, then strike: at every write, or at a sample. Prints a line for each run."""
    begun, gate = time.monotonic(), asyncio.Semaphore(at_once)
    for name, outcome in zip(stories, await suite.learn(stories), strict=True):
        print(
            f"{name}: {len(outcome.writes)} writes, {outcome.requests} requests in {outcome.seconds:.1f} s", flush=True
        )
    points = suite.points(stories)
    if size is not None:
        points = sample(points, size, seed)
    done = 0

    async def one(run: Point | str) -> Outcome:
        nonlocal done
        async with gate:
            outcome = await (suite.strike(run) if isinstance(run, Point) else suite.storm(run))
        done += 1
        what = outcome.problem or ("ok" if outcome.struck or isinstance(run, str) else "ok (that write was not made)")
        at = f" {outcome.struck}" if outcome.struck else ""
        label = run if isinstance(run, Point) else f"{run}: after every write, {outcome.starts} processes"
        print(f"[{time.monotonic() - begun:5.0f} s] {done}/{len(points) + len(storms)} {label}{at}: {what}", flush=True)
        return outcome

    runs: list[Point | str] = [*storms, *points]
    return list(await asyncio.gather(*(one(run) for run in runs)))


def _own() -> str | None:
    """The kubeconfig of the cluster that `e2e.cluster` has brought up."""
    cluster = Cluster(Paths.from_env())
    return str(cluster.paths.admin_kubeconfig) if cluster.mode() else None


async def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m e2e.faults", description=__doc__)
    parser.add_argument("--sample", type=int, help="so many kill points; all, when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=6, help="runs at once")
    parser.add_argument("--story", action="append", choices=list(LIFECYCLES), help="only these lifecycles")
    parser.add_argument("--no-storms", action="store_true", help="no runs with a kill after every write")
    parser.add_argument("--point", help="one kill point: STORY:N:before|after")
    parser.add_argument("--logs", type=Path, help="folder for the operators' logs")
    options = parser.parse_args()
    try:
        kubeconfig = which_cluster.given() or _own()
    except which_cluster.NotConfirmedError as error:
        parser.error(str(error))
    if kubeconfig is None:
        parser.error("no control plane is up: `python -m e2e.cluster up --control-plane-only`, or run `make faults`")
    stories = options.story or list(LIFECYCLES)
    folder = options.logs or Path(tempfile.mkdtemp(prefix="rljob-faults-"))
    access = Access.load(kubeconfig)
    async with Admin.connect(access) as admin, World(admin).running() as world:
        suite = Suite(access, world, folder)
        if options.point:
            story, number, when = options.point.split(":")
            await suite.learn([story])
            outcomes = [await suite.strike(Point(story, int(number), when))]
        else:
            outcomes = await kill_all(
                suite,
                stories,
                size=options.sample,
                seed=options.seed,
                at_once=options.at_once,
                storms=[] if options.no_storms else stories,
            )
    bad = [outcome for outcome in outcomes if outcome.problem]
    struck = Counter(o.point.story for o in outcomes if o.point and o.struck)
    print(
        f"{sum(struck.values())} kills ({', '.join(f'{n} {s}' for s, n in struck.items())}); {len(bad)} runs went wrong"
    )
    for outcome in bad:
        print(f"- {outcome.point or 'storm'} {outcome.struck or ''}: {outcome.problem}")
    print(f"logs of the operators: {folder}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
