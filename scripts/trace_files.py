"""Counts the files of our packages on a way through the code, in the order in which they are first called.

    python scripts/trace_files.py sample      one sample: prompt file → rows, then a draw of prompts → optimizer step
    python scripts/trace_files.py rljob       one RLJob: watch event → its RayJob is created
    python scripts/trace_files.py --leg 'FROM > TO' [--leg …] -- COMMAND…     any other way

What is counted: a file in which a function is called (by `sys.monitoring`; imports, decorators and class bodies are no
calls) in any process of the command between the call of FROM and the return of TO. Legs follow one another; a file
counts once. FROM and TO are `path:qualified.name` with wildcards, the path as it ends. Threads that do something else
at the same time (signs of life, writers of metrics and progress) are left out by name; --threads lists all.

`sample` is a job of one GRPO step: single turn, fsdp, the torch engine, Ray on this machine. `rljob` is a job without
preparation and retriever; apiserver and KubeRay are those of the operator's tests, so kopf and HTTP are not on the way.

The environment is that of the calling shell; PYTHONPATH must name api, cli, operator, trainer where they are not
installed.
"""

import argparse
import asyncio
import atexit
import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "rljob_api": "api",
    "rljob": "api",
    "rljob_cli": "cli",
    "rljob_operator": "operator",
    "rljob_trainer": "trainer",
}
FOLDERS = tuple(str(ROOT / folder / package) + os.sep for package, folder in PACKAGES.items())
SEEN = (*FOLDERS, __file__)
OUTPUT = "RLJOB_TRACE_FILES"
"""Environment variable: the folder that every traced process writes a file into."""
MARKS = "RLJOB_TRACE_MARKS"
IDLE_THREADS = (
    "pulse",
    "watchdog",
    "memory",
    "progress*",
    "tracker-*",
    "metrics*",
    "control*",
    "lease*",
    "commit*",
    "upload*",
)
SAME_MOMENT_NS = 200_000
"""Calls of one function within this time are written once."""
LIMIT_SECONDS = 540.0
CREATED_SECONDS = 60.0
SMALL_WORLD = {
    "entities": 60,
    "heldOutEntities": 20,
    "syllables": 12,
    "trainQuestions": 40,
    "heldOutQuestions": 6,
    "demonstrations": 40,
}

SAMPLE = (
    "data/prompts.py:load_prompts > data/prompts.py:load_prompts",
    "data/prompts.py:PromptSource.next > training/*:*.rl_step",
)
RLJOB = ("main.py:handlers.<locals>.of_job > scripts/trace_files.py:ray_job_created",)


class Call(NamedTuple):
    """A function is called (`kind` C) or returns (R)."""

    time: int
    kind: str
    thread: str
    file: str
    name: str


def record(folder: str) -> None:
    """Write the calls of this process into a file in `folder`, each at once: processes are killed, too."""
    monitoring, events = sys.monitoring, sys.monitoring.events
    output = os.open(Path(folder) / f"{os.getpid()}-{time.time_ns()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    marks = json.loads(os.environ[MARKS])
    last: dict[CodeType, int] = {}

    def write(kind: str, code: CodeType, now: int) -> None:
        thread = threading.current_thread().name
        os.write(output, "\t".join((str(now), kind, thread, code.co_filename, code.co_qualname)).encode() + b"\n")

    def called(code: CodeType, offset: int) -> Any:
        now = time.time_ns()
        if code not in last:
            if not code.co_filename.startswith(SEEN):
                return monitoring.DISABLE
            marked = any(matches(mark, code.co_filename, code.co_qualname) for mark in marks)
            ours = code.co_flags & CO_OPTIMIZED and code.co_filename.startswith(FOLDERS)
            if not marked and not ours:
                return monitoring.DISABLE
            if marked:
                monitoring.set_local_events(monitoring.PROFILER_ID, code, events.PY_RETURN)
            last[code] = 0
        if now - last[code] > SAME_MOMENT_NS and not _importing(sys._getframe(1)):
            last[code] = now
            write("C", code, now)
        return None

    def returned(code: CodeType, offset: int, value: object) -> None:
        write("R", code, time.time_ns())

    monitoring.use_tool_id(monitoring.PROFILER_ID, "trace_files")
    monitoring.register_callback(monitoring.PROFILER_ID, events.PY_START, called)
    monitoring.register_callback(monitoring.PROFILER_ID, events.PY_RETURN, returned)
    monitoring.set_events(monitoring.PROFILER_ID, events.PY_START)
    atexit.register(monitoring.set_events, monitoring.PROFILER_ID, 0)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "_call_with_frames_removed" and "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def matches(mark: str, file: str, name: str) -> bool:
    """Whether a function of a file is what a mark names."""
    path, _, wanted = mark.partition(":")
    return fnmatch.fnmatchcase(file, f"*/{path}") and fnmatch.fnmatchcase(name, wanted)


def on_the_way(calls: Sequence[Call], legs: Sequence[Sequence[str]], idle: Sequence[str]) -> list[list[Call]]:
    """The first call of every file within each leg. Raises SystemExit for a mark that is not met."""
    found: list[list[Call]] = []
    ended = 0
    for begin, end in legs:
        began = _first(calls, begin, "C", ended).time
        ended = _first(calls, end, "R", began).time
        firsts: dict[str, Call] = {}
        for call in calls:
            ours = call.file.startswith(FOLDERS) and not any(fnmatch.fnmatchcase(call.thread, name) for name in idle)
            if call.kind == "C" and ours and began <= call.time <= ended:
                firsts.setdefault(call.file, call)
        found.append(list(firsts.values()))
    return found


def _first(calls: Sequence[Call], mark: str, kind: str, after: int) -> Call:
    for call in calls:
        if call.kind == kind and call.time >= after and matches(mark, call.file, call.name):
            return call
    verb = "is called" if kind == "C" else "returns"
    raise SystemExit(f"error: nothing that {mark} names {verb} there; was it renamed? ({len(calls)} calls were seen)")


def trace(command: Sequence[str], legs: Sequence[Sequence[str]]) -> list[Call]:
    """Run a command and return the calls of all its processes, by time. Raises SystemExit when it fails."""
    with tempfile.TemporaryDirectory(prefix="trace-files-") as folder:
        # Every Python that finds this on its path imports it first, those that others start included.
        Path(folder, "sitecustomize.py").write_text(
            "import importlib.util, os\n"
            f"spec = importlib.util.spec_from_file_location('trace_files', {str(Path(__file__).resolve())!r})\n"
            "module = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(module)\n"
            f"module.record(os.environ[{OUTPUT!r}])\n"
        )
        output = Path(folder, "calls")
        output.mkdir()
        environment = os.environ | {
            OUTPUT: str(output),
            MARKS: json.dumps([mark for leg in legs for mark in leg]),
            "PYTHONPATH": os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        done = subprocess.run(command, env=environment, check=False, timeout=LIMIT_SECONDS)
        if done.returncode:
            raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}")
        lines = [line.split("\t") for path in output.iterdir() for line in path.read_text().splitlines()]
    return sorted(Call(int(moment), *rest) for moment, *rest in lines)


def sample_job(folder: Path) -> list[str]:
    """The command of a job of one optimizer step: the quickstart, cut short."""
    import yaml

    job = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text(encoding="utf-8"))
    spec = job["spec"]
    for section in ("sft", "retriever", "evaluation"):
        del spec[section]
    spec["data"]["prepare"]["args"] = SMALL_WORLD
    spec["rollout"] |= {"numRollout": 1, "batchSize": 2, "nSamplesPerPrompt": 2, "generate": {"type": "single_turn"}}
    spec["rollout"]["sampling"] = {"maxResponseLength": 8}
    spec["reward"] = {"functions": [{"name": "length", "args": {"maxLength": 8, "buffer": 8}}]}
    spec["tracking"] = {"metricsPort": 0}
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "rljob_trainer.driver", "--job", str(path), "--dir", str(folder)]
    return [*command, "--incarnation", "0001-00000000", "--local", "--quiet"]


async def play_rljob() -> None:
    """The operator's controller, its cache and its event handler; apiserver and KubeRay are those of its tests."""
    from prometheus_client import CollectorRegistry
    from rljob_operator.controller.controller import Controller
    from rljob_operator.kube.cache import Cache, CachedKube
    from rljob_operator.main import handlers
    from rljob_operator.metrics import Metrics
    from rljob_operator.settings import Settings

    spec = importlib.util.spec_from_file_location("operator_world", ROOT / "operator/tests/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    world_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(world_module)
    manifest = world_module.job_manifest()
    del manifest["spec"]["retriever"], manifest["spec"]["data"]["prepare"]
    manifest["spec"]["rollout"]["generate"] = {"type": "single_turn"}
    world, cache = world_module.World(manifest), Cache()
    settings = Settings(watch_namespaces=(world_module.NAMESPACE,))
    live: Any = world.kube
    create = live.create

    async def noticed(obj: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await create(obj)
        if obj["kind"] == "RayJob":
            ray_job_created()
            created.set()
        return answer

    live.create, created = noticed, asyncio.Event()
    controller = Controller(CachedKube(live, cache), settings, Metrics(CollectorRegistry()), live)
    controller.synced.set()
    (handler,) = handlers(controller, cache)._watching.get_all_handlers()
    job = next(obj for (kind, _), obj in world.kube.objects.items() if kind == "RLJob")
    async with controller.running(), asyncio.timeout(CREATED_SECONDS):
        await handler.fn(event={"type": "ADDED", "object": job})
        await created.wait()


def ray_job_created() -> None:
    """Where the way of an RLJob ends."""


def show(found: Sequence[Sequence[Call]], legs: Sequence[Sequence[str]]) -> None:
    """Print the files by leg, in order of their first call, and their number."""
    seen: set[str] = set()
    for leg, calls in zip(legs, found, strict=True):
        print(f"\n{' > '.join(leg)}")
        for call in calls:
            again = call.file in seen
            number = "   ·" if again else f"{len(seen) + 1:4}"
            seen.add(call.file)
            print(f"{number}  {Path(call.file).relative_to(ROOT)}  {call.name}{'  (again)' if again else ''}")
    print(f"\n{len(seen)} files")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", nargs="?", choices=["sample", "rljob"])
    parser.add_argument("--leg", action="append", default=[], help="FROM > TO, both path:qualified.name; repeatable")
    parser.add_argument("--threads", action="store_true", help="list the threads and their calls, too")
    parser.add_argument("--play-rljob", action="store_true", help=argparse.SUPPRESS)
    arguments, command = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, command = arguments[:at], arguments[at + 1 :]
    options = parser.parse_args(arguments)
    if options.play_rljob:
        asyncio.run(play_rljob())
        return
    legs = options.leg or {"sample": SAMPLE, "rljob": RLJOB}.get(options.way, ())
    if not legs or (options.way is None) == (not command):
        parser.error("give sample, rljob, or --leg and -- COMMAND")
    ways = [leg.split(" > ") for leg in legs]
    if any(len(way) != 2 for way in ways):
        parser.error("--leg: give two marks, 'FROM > TO'")
    with tempfile.TemporaryDirectory(prefix="trace-job-") as folder:
        if options.way == "sample":
            command = sample_job(Path(folder))
        elif options.way == "rljob":
            command = [sys.executable, __file__, "--play-rljob"]
        calls = trace(command, ways)
    if options.threads:
        for thread in sorted({call.thread for call in calls}):
            files = {Path(call.file).name for call in calls if call.thread == thread}
            print(f"{thread}: {', '.join(sorted(files))}")
    show(on_the_way(calls, ways, IDLE_THREADS), ways)


if __name__ == "__main__":
    main()
