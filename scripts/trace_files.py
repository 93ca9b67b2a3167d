"""Counts the files of our packages on a way through the code, in the order in which they are first called.

    python scripts/trace_files.py sample      one sample: prompt file → rows, then a draw of prompts → optimizer step
    python scripts/trace_files.py rljob       one RLJob: watch event → its RayJob is created
    python scripts/trace_files.py --leg 'FROM > TO' [--leg …] -- COMMAND…     any other way

Two numbers. *Called* are the files in which a function is called (by `sys.monitoring`; imports, decorators and class
bodies are no calls) in any process of the command between the call of FROM and the return of TO. Legs follow one
another; a file counts once. FROM and TO are `path:qualified.name` with wildcards, the path as it ends. Threads that do
something else at the same time (signs of life, writers of metrics and progress) are left out by name; --threads lists
all.

*On the way* are those of them in which a function has the thing itself in its hands: it is among the arguments or is
what is returned, alone or in a list, tuple, set or dict. `*` marks them in the list, with what they hold.

- `sample`: the rows of the prompt file, PromptRow, Sample, Generation, TrainSample, Row, MicroBatch, and what holds
  these and nothing else of the run (Prompts, Group, Collected, Rollout).
- `rljob`: the raw RLJob, its model, Observed, Context, JobView, Decision, the RayJob, and parts of it: what is called
  while it is built and returns a dict or a list.

Not counted are `self`; `MODELS`, whose files only say what the thing is; a call that returns the Decision that it was
handed as it was, and all that is called within it; builders of other children than the RayJob, and of Events.

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
from collections.abc import Mapping, Sequence
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_OPTIMIZED, CO_VARARGS, CO_VARKEYWORDS
from itertools import islice
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
WAY = "RLJOB_TRACE_WAY"
"""Environment variable: the way that is traced, as JSON."""
MODELS = tuple(str(ROOT / "api" / path) for path in ("rljob/types.py", "rljob_api/v1alpha1/"))
LOOKED_AT = 8
"""Items of a collection that are looked at."""
DEPTH = 3
"""Collections within one another."""
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


class Way(NamedTuple):
    """A way, and what goes along it."""

    legs: tuple[str, ...]
    """`FROM > TO`."""
    things: tuple[str, ...] = ()
    """Classes of it, as `module.Class`."""
    raw: str = ""
    """Kind of the object of Kubernetes that it is at first, as a dict."""
    made: str = ""
    """Kind of the object of Kubernetes that becomes of it."""
    untyped: tuple[str, ...] = ()
    """Functions, `path:qualified.name`, that hold it where it has no class of its own."""
    builders: str = ""
    """Folder whose files count for what they do while `made` is built, and for nothing else."""
    passed_on: str = ""
    """Class whose objects are never changed in place: who returns the one it was handed has done nothing."""


SAMPLE = Way(
    legs=(
        "data/prompts.py:load_prompts > data/prompts.py:load_prompts",
        "data/prompts.py:PromptSource.next > training/*:*.rl_step",
    ),
    things=(
        "rljob_trainer.data.prompts.PromptRow",
        "rljob_trainer.data.prompts.Prompts",
        "rljob.types.Sample",
        "rljob.types.Generation",
        "rljob_trainer.rollout.dynamic_sampling.Group",
        "rljob_trainer.rollout.synchronous.Collected",
        "rljob_trainer.rollout.source.Rollout",
        "rljob.types.TrainSample",
        "rljob_trainer.training.microbatch.Row",
        "rljob_trainer.training.microbatch.MicroBatch",
    ),
    untyped=("data/rows.py:read_rows",),
)
RLJOB = Way(
    legs=("main.py:handlers.<locals>.of_job > scripts/trace_files.py:ray_job_created",),
    things=(
        "rljob_api.v1alpha1.job.RLJob",
        "rljob_operator.state.observe.Observed",
        "rljob_operator.resources.context.Context",
        "rljob_operator.state.job_view.JobView",
        "rljob_operator.policies.decision.Decision",
    ),
    raw="RLJob",
    made="RayJob",
    builders=str(ROOT / "operator/rljob_operator/resources") + os.sep,
    passed_on="rljob_operator.policies.decision.Decision",
)


class Call(NamedTuple):
    """What happens to a function. `kind`: it is called (C) or returns (R); it has the thing in its hands (H); it
    returns a dict or a list (D), or what becomes of the thing (M), or what is not on the way (N)."""

    time: int
    kind: str
    process: str
    thread: str
    file: str
    name: str
    since: int = 0
    """When it was called, for D, M and N."""
    thing: str = ""
    """What it has in its hands, for H."""


class _Hands:
    """What functions have in their hands."""

    def __init__(self, way: Way) -> None:
        self._way, self._things = way, frozenset(way.things)
        self._open: dict[int, tuple[int, object]] = {}
        """By the id of the frame: when it was called, and the object that it may pass on."""

    def handed(self, frame: FrameType, now: int) -> str:
        """A function is called: the name of the thing among its arguments."""
        code = frame.f_code
        count = code.co_argcount + code.co_kwonlyargcount
        count += bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
        values = frame.f_locals
        given = [values[name] for name in code.co_varnames[:count] if name in values and name not in ("self", "cls")]
        same = next((value for value in given if _class(value) == self._way.passed_on), None)
        self._open[id(frame)] = (now, same)
        if any(matches(mark, code.co_filename, code.co_qualname) for mark in self._way.untyped):
            return "rows"
        return next(filter(None, map(self.thing, given)), "")

    def given(self, frame: FrameType, value: object, now: int) -> tuple[int, str, str]:
        """A function returns: when it was called, the kinds to record (D, M, N), and the name of the thing."""
        since, same = self._open.pop(id(frame), (now, None))
        if frame.f_code.co_flags & (CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR):  # others run meanwhile
            return since, "", self.thing(value)
        kinds = _kinds(value)
        others = kinds - {self._way.raw, self._way.made}
        found = "D" if self._way.made and isinstance(value, dict | list) and value else ""
        found += "M" if self._way.made in kinds else ""
        found += "N" if others or (same is not None and value == same) else ""
        return since, found, self.thing(value)

    def thing(self, value: object, depth: int = DEPTH) -> str:
        """The name of the thing that a value is or holds; empty where there is none."""
        name = _class(value)
        if name in self._things:
            return name.rpartition(".")[2]
        if isinstance(value, dict):
            kind = value.get("kind")
            if isinstance(kind, str) and kind in (self._way.raw, self._way.made) and "metadata" in value:
                return kind if kind == self._way.made else f"{kind} (raw)"
            value = value.values()
        elif not isinstance(value, list | tuple | set | frozenset):
            return ""
        if depth == 0:
            return ""
        return next(filter(None, (self.thing(item, depth - 1) for item in islice(value, LOOKED_AT))), "")


def _class(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _kinds(value: object) -> set[str]:
    """Kinds of the objects of Kubernetes that a value is, or a list of."""
    found = set()
    for item in value if isinstance(value, list | tuple) else [value]:
        item = item[0] if isinstance(item, tuple) and item else item
        if isinstance(item, dict) and isinstance(item.get("kind"), str) and "metadata" in item:
            found.add(item["kind"])
    return found


def record(folder: str) -> None:
    """Write the calls of this process into a file in `folder`, each at once: processes are killed, too."""
    monitoring, events = sys.monitoring, sys.monitoring.events
    output = os.open(Path(folder) / f"{os.getpid()}-{time.time_ns()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    way = Way(*json.loads(os.environ[WAY]))
    marks, hands = [mark for leg in way.legs for mark in leg.split(" > ")], _Hands(way)
    last: dict[CodeType, int] = {}
    marked: set[CodeType] = set()

    def write(kind: str, code: CodeType, now: int, since: int = 0, thing: str = "") -> None:
        thread = threading.current_thread().name
        call = Call(now, kind, str(os.getpid()), thread, code.co_filename, code.co_qualname, since, thing)
        os.write(output, "\t".join(map(str, call)).encode() + b"\n")

    def called(code: CodeType, offset: int) -> Any:
        now = time.time_ns()
        if code not in last:
            if not code.co_filename.startswith(SEEN):
                return monitoring.DISABLE
            ours = code.co_flags & CO_OPTIMIZED and code.co_filename.startswith(FOLDERS)
            if any(matches(mark, code.co_filename, code.co_qualname) for mark in marks):
                marked.add(code)
            elif not ours:
                return monitoring.DISABLE
            monitoring.set_local_events(monitoring.PROFILER_ID, code, events.PY_RETURN)
            last[code] = 0
        frame = sys._getframe(1)
        if now - last[code] > SAME_MOMENT_NS and not _importing(frame):
            last[code] = now
            write("C", code, now)
        if thing := hands.handed(frame, now):
            write("H", code, now, thing=thing)
        return None

    def returned(code: CodeType, offset: int, value: object) -> None:
        now = time.time_ns()
        since, kinds, thing = hands.given(sys._getframe(1), value, now)
        if thing:
            write("H", code, since, thing=thing)
        for kind in kinds:
            write(kind, code, now, since)
        if code in marked:
            write("R", code, now)

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


def called_files(calls: Sequence[Call], legs: Sequence[Sequence[str]], idle: Sequence[str]) -> list[list[Call]]:
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


def in_hand(
    calls: Sequence[Call], legs: Sequence[Sequence[str]], idle: Sequence[str], builders: str = ""
) -> dict[str, list[str]]:
    """The files on the way, and what they have in their hands. `builders`: see `Way`."""
    spans: dict[str, list[Call]] = {"M": [], "N": []}
    for call in calls:
        if call.kind in spans:
            spans[call.kind].append(call)

    def within(call: Call, kind: str) -> bool:
        moment = call.since or call.time
        return any(
            (span.process, span.thread) == (call.process, call.thread) and span.since <= moment <= span.time
            for span in spans[kind]
        )

    found: dict[str, list[str]] = {}
    ended = 0
    for begin, end in legs:
        began = _first(calls, begin, "C", ended).time
        ended = _first(calls, end, "R", began).time
        for call in calls:
            if not began <= (call.since or call.time) <= ended or call.kind not in "HD":
                continue
            if not call.file.startswith(FOLDERS) or call.file.startswith(MODELS):
                continue
            if any(fnmatch.fnmatchcase(call.thread, name) for name in idle) or within(call, "N"):
                continue
            building = within(call, "M")
            if not building and (call.kind == "D" or (builders and call.file.startswith(builders))):
                continue
            things = found.setdefault(call.file, [])
            if (thing := call.thing or "a part") not in things:
                things.append(thing)
    return found


def _first(calls: Sequence[Call], mark: str, kind: str, after: int) -> Call:
    for call in calls:
        if call.kind == kind and call.time >= after and matches(mark, call.file, call.name):
            return call
    verb = "is called" if kind == "C" else "returns"
    raise SystemExit(f"error: nothing that {mark} names {verb} there; was it renamed? ({len(calls)} calls were seen)")


def trace(command: Sequence[str], way: Way) -> list[Call]:
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
            WAY: json.dumps(way),
            "PYTHONPATH": os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        done = subprocess.run(command, env=environment, check=False, timeout=LIMIT_SECONDS)
        if done.returncode:
            raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}")
        lines = [line.split("\t") for path in output.iterdir() for line in path.read_text().splitlines()]
    return sorted(Call(int(now), *rest, int(since), thing) for now, *rest, since, thing in lines)


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


def show(found: Sequence[Sequence[Call]], legs: Sequence[Sequence[str]], held: Mapping[str, Sequence[str]]) -> None:
    """Print the files by leg, in order of their first call, what they hold, and both numbers."""
    seen: set[str] = set()
    for leg, calls in zip(legs, found, strict=True):
        print(f"\n{' > '.join(leg)}")
        for call in calls:
            again = call.file in seen
            number = "   ·" if again else f"{len(seen) + 1:4}"
            seen.add(call.file)
            holds = f"  * {', '.join(held[call.file])}" if call.file in held and not again else ""
            print(f"{number}  {Path(call.file).relative_to(ROOT)}  {call.name}{'  (again)' if again else ''}{holds}")
    on_the_way = f", {len(held)} of them on the way (*)" if held else ""
    print(f"\n{len(seen)} files called{on_the_way}")


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
    way = {"sample": SAMPLE, "rljob": RLJOB}.get(options.way, Way(()))
    if options.leg:
        way = way._replace(legs=tuple(options.leg))
    if not way.legs or (options.way is None) == (not command):
        parser.error("give sample, rljob, or --leg and -- COMMAND")
    legs = [leg.split(" > ") for leg in way.legs]
    if any(len(leg) != 2 for leg in legs):
        parser.error("--leg: give two marks, 'FROM > TO'")
    with tempfile.TemporaryDirectory(prefix="trace-job-") as folder:
        if options.way == "sample":
            command = sample_job(Path(folder))
        elif options.way == "rljob":
            command = [sys.executable, __file__, "--play-rljob"]
        calls = trace(command, way)
    if options.threads:
        for thread in sorted({call.thread for call in calls}):
            files = {Path(call.file).name for call in calls if call.thread == thread}
            print(f"{thread}: {', '.join(sorted(files))}")
    show(called_files(calls, legs, IDLE_THREADS), legs, in_hand(calls, legs, IDLE_THREADS, way.builders))


if __name__ == "__main__":
    main()
