"""A process that runs reward functions: `python -m rljob_trainer.rewards.worker`. It may be killed at any time.

Protocol, over its standard input and output: frames of a 4-byte big-endian length and a body. The first frame in
(JSON) names the functions and the import path; each further one (pickle, from the parent alone) is a request
(number, function, sample, time limit). Frames out are JSON: {"ready": …} once, then {"number": n, "value": …} or
{"number": n, "error": …, "kind": …, "where": …} or {"number": n, "timeout": true}. What functions print goes to
standard error.
"""

import asyncio
import inspect
import json
import os
import pickle
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from rljob_api.errors import UserError

from rljob_trainer.hooks import defined_at, load_function, raised_at

PARENT_CHECK_SECONDS = 2.0
LONGEST_ERROR = 1000
"""Characters of an exception's text that are reported."""


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame, or None at the end of the stream."""
    header = stream.read(4)
    if len(header) < 4:
        return None
    return stream.read(struct.unpack(">I", header)[0])


def write_frame(stream: BinaryIO, body: bytes) -> None:
    """Write one frame and flush."""
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


@dataclass(frozen=True)
class Entry:
    """One function: its keyword arguments, and the bytes that a call may allocate (None: no limit)."""

    function: Callable[..., Any]
    args: dict[str, Any]
    memory: int | None = None


async def serve(stdin: BinaryIO, stdout: BinaryIO, functions: list[Entry]) -> None:
    """Answer requests until the input ends. Async functions run side by side, others one after the other."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    while (frame := await loop.run_in_executor(None, read_frame, stdin)) is not None:
        number, which, sample, limit = pickle.loads(frame)  # the parent process alone writes to this pipe
        task = asyncio.create_task(answer(stdout, number, functions[which], sample, limit))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.gather(*tasks)


async def answer(stdout: BinaryIO, number: int, entry: Entry, sample: Any, limit: float) -> None:
    """Run one function on one sample and report the value, or what went wrong. Only an async function can be stopped
    from in here when its time is up; for others the parent ends the process."""
    reply: dict[str, Any]
    time_up = asyncio.timeout(None)
    try:
        with memory_limit(entry.memory):
            value = entry.function(sample, **entry.args)
        if inspect.isawaitable(value):
            async with asyncio.timeout(limit) as time_up:
                value = await value
        reply = {"number": number, "value": as_numbers(value)}
    except BaseException as error:  # noqa: BLE001 - what a user's function raises, sys.exit() too, costs its sample
        if time_up.expired():
            reply = {"number": number, "timeout": True}
        else:
            text = described(error)
            where = raised_at(error, entry.function)
            reply = {"number": number, "error": text, "kind": type(error).__name__, "where": where}
    write_frame(stdout, json.dumps(reply).encode())


def described(error: BaseException) -> str:
    """Type and text of an exception, also of one that cannot say its text."""
    try:
        text = str(error)
    except Exception as another:  # noqa: BLE001 - a user's class
        text = f"its text cannot be had: {type(another).__name__}"
    if isinstance(error, MemoryError) and not text:
        text = "it ran out of memory"
    return f"{type(error).__name__}: {text[:LONGEST_ERROR]}" if text else type(error).__name__


@contextmanager
def memory_limit(allowance: int | None) -> Iterator[None]:
    """Let the address space of this process grow by `allowance` bytes at most; beyond it, MemoryError (or, in code
    that does not know what to do then, the end of the process). Nothing where the size cannot be read."""
    if allowance is None or not os.path.exists("/proc/self/statm"):
        yield
        return
    with open("/proc/self/statm", encoding="ascii") as statistics:
        size = int(statistics.read().split()[0]) * resource.getpagesize()
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = size + allowance
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


def as_numbers(value: Any) -> float | dict[str, float]:
    """A reward as plain numbers (numpy and tensor scalars included). Raises TypeError on anything else."""
    if isinstance(value, dict):
        return {str(key): float(part) for key, part in value.items()}
    if isinstance(value, str) or value is None:
        raise TypeError(f"a reward must be a number or a dict of numbers, not {value!r}")
    return float(value)


def watch_parent(parent: int) -> None:
    """End this process when its parent is gone: a hanging function must not outlive the job."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def main() -> None:
    """Entry point."""
    threading.Thread(target=watch_parent, args=(os.getppid(),), daemon=True).start()
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    frame = read_frame(stdin)
    if frame is None:
        return
    start = json.loads(frame)
    sys.path[:] = start["path"]
    try:
        functions = [
            Entry(load_function(item["function"], item["field"]), item["args"], item["memory"])
            for item in start["functions"]
        ]
    except UserError as error:
        write_frame(stdout, json.dumps({"ready": False, "message": error.message, "hint": error.hint}).encode())
        return
    asynchronous = [inspect.iscoroutinefunction(entry.function) for entry in functions]
    defined = [defined_at(entry.function) for entry in functions]
    ready = {"ready": True, "asynchronous": asynchronous, "defined": defined}
    write_frame(stdout, json.dumps(ready).encode())
    asyncio.run(serve(stdin, stdout, functions))


if __name__ == "__main__":
    main()
