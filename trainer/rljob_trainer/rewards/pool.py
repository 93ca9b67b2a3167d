"""Reward functions in worker processes, each call within its time limit."""

import json
import math
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from rljob.types import Sample
from rljob_api.errors import UserError

from rljob_trainer.rewards.failures import Fault

START_TIMEOUT_SECONDS = 300.0
ASYNC_CALLS = 64
"""Calls of async functions under way in one worker."""
GRACE_SECONDS = 2.0
"""Beyond the limit of an async call, before its worker is taken to be stuck."""


@dataclass(frozen=True)
class WorkerFunction:
    """A function that runs in a worker: its import path, the manifest's field that names it, its keyword arguments."""

    function: str
    field: str
    args: dict[str, Any]
    memory: int | None = None
    """Bytes that a call may allocate beyond what the process holds; None: what the machine has."""
    text_only: bool = False
    """The function reads prompt, response, label and metadata alone: nothing else is sent."""


@dataclass(frozen=True)
class Outcome:
    """What one call gave: a value, or an error, or (with `timed_out`) nothing in time."""

    value: float | dict[str, float] | None = None
    error: str | None = None
    timed_out: bool = False
    kind: str = ""
    """The error without what is the sample's: `ValueError`; empty where `error` is that itself."""
    where: str = ""
    """The line of the user's code: of the error, or where the function begins."""
    away: bool = False
    """The error is that a service was not there."""

    @property
    def fault(self) -> Fault | None:
        """Why there is no value, or none that is a reward."""
        if self.error is not None:
            return self._fault(self.kind or self.error, self.error)
        if self.timed_out:
            return self._fault("out of time", "the reward function ran out of time")
        numbers = list(self.value.values()) if isinstance(self.value, dict) else [self.value]
        if not numbers or not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
            said = f"the reward function returned {self.value!r}, not finite numbers"
            return self._fault("no finite number", said)
        return None

    def _fault(self, what: str, text: str) -> Fault:
        at, beside = (f" at {self.where}", f" ({self.where})") if self.where else ("", "")
        return Fault(f"{what}{at}", f"{text}{beside}", self.away)


@dataclass
class Call:
    """One function on one sample."""

    number: int
    which: int
    sample: Sample


class WorkerLostError(RuntimeError):
    """The worker process ended, or no longer reads."""


class Worker:
    """One process, see `rewards.worker`. Every wait has a limit."""

    def __init__(self, functions: Sequence[WorkerFunction]) -> None:
        self.functions = functions
        self.limit = 1
        self.process: subprocess.Popen[bytes] | None = None
        self.asynchronous: list[bool] = []
        self.defined: list[str] = []
        """Where each function begins."""
        self._buffer = b""

    def start(self) -> None:
        """Start the process and wait until it has imported the functions. UserError when it cannot."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rljob_trainer.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
        )
        self._buffer = b""
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        functions = [asdict(function) for function in self.functions]
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        names = ", ".join(f.function for f in self.functions)
        try:
            self.send(json.dumps({"path": sys.path, "functions": functions}).encode(), deadline)
            reply = self.receive(deadline)
        except WorkerLostError as error:
            self.kill()
            raise UserError(f"{self.functions[0].field}: the process that imports {names} ended: {error}") from error
        if reply is None:
            self.kill()
            raise UserError(f"{self.functions[0].field}: importing {names} took over {START_TIMEOUT_SECONDS:g} s")
        if not reply["ready"]:
            self.kill()
            raise UserError(reply["message"], hint=reply["hint"])
        self.asynchronous, self.defined = reply["asynchronous"], reply["defined"]
        self.limit = ASYNC_CALLS if all(self.asynchronous) else 1

    def send(self, body: bytes, deadline: float) -> None:
        """Write one frame. Raises WorkerLostError when the process is gone or does not read until `deadline`."""
        assert self.process is not None
        assert self.process.stdin is not None
        descriptor, rest = self.process.stdin.fileno(), memoryview(struct.pack(">I", len(body)) + body)
        while rest:
            _, writable, _ = select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))
            if not writable:
                raise WorkerLostError("it does not read its input")
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BrokenPipeError as error:
                raise WorkerLostError(self.exit_reason()) from error

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """The next reply, or None when `deadline` has come. Raises WorkerLostError when the process is gone."""
        assert self.process is not None
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while True:
            if len(self._buffer) >= 4:
                size = struct.unpack(">I", self._buffer[:4])[0]
                if len(self._buffer) >= 4 + size:
                    body, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
                    reply: dict[str, Any] = json.loads(body)
                    return reply
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                return None
            data = os.read(descriptor, 1 << 16)
            if not data:
                raise WorkerLostError(self.exit_reason())
            self._buffer += data

    def exit_reason(self) -> str:
        """How the process ended, in words."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process, and what it has started."""
        if self.process is None:
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process = None


class WorkerPool:
    """Processes that are kept between rollouts."""

    def __init__(self, functions: Sequence[WorkerFunction], workers: int, timeout_seconds: float) -> None:
        self.functions, self.timeout = functions, timeout_seconds
        self._workers = [Worker(functions) for _ in range(workers)]
        self._lock = threading.Lock()

    def run(self, samples: Sequence[Sample]) -> list[list[Outcome]]:
        """Outcomes by sample and function. A call that hangs or crashes its process costs that call alone."""
        count = len(self.functions)
        calls = deque(
            Call(place * count + which, which, sample) for place, sample in enumerate(samples) for which in range(count)
        )
        outcomes: dict[int, Outcome] = {}
        with ThreadPoolExecutor(len(self._workers)) as threads:
            for future in [threads.submit(self._drive, worker, calls, outcomes) for worker in self._workers]:
                future.result()
        return [[outcomes[place * count + which] for which in range(count)] for place in range(len(samples))]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()

    def _drive(self, worker: Worker, calls: deque[Call], outcomes: dict[int, Outcome]) -> None:
        """Feed one worker until there are no calls left. Each call's clock starts when it is sent."""
        waiting: dict[int, tuple[Call, float]] = {}
        again: deque[Call] = deque()
        """Calls that were under way beside one that took the process down: each is tried once more, alone."""
        alone = False
        while True:
            try:
                if not waiting and (worker.process is None or worker.process.poll() is not None):
                    worker.kill()
                    worker.start()
                if not waiting:
                    alone = bool(again)
                if alone and not waiting:
                    self._send(worker, again.popleft(), waiting)
                elif not alone:
                    while len(waiting) < worker.limit and (call := self._next(calls)) is not None:
                        self._send(worker, call, waiting)
                if not waiting:
                    return
                reply = worker.receive(min(deadline for _, deadline in waiting.values()))
            except WorkerLostError as error:
                worker.kill()
                if len(waiting) == 1:
                    ((number, (call, _)),) = waiting.items()
                    lost = f"the reward process was lost: {error}"
                    outcomes[number] = Outcome(error=lost, where=worker.defined[call.which])
                else:
                    again.extend(call for call, _ in waiting.values())
                waiting.clear()
                continue
            if reply is None:
                worker.kill()
                now = time.monotonic()
                for number, (call, deadline) in waiting.items():
                    if deadline <= now and len(waiting) == 1:
                        outcomes[number] = Outcome(timed_out=True, where=worker.defined[call.which])
                    else:
                        again.append(call)
                waiting.clear()
            else:
                call, _ = waiting.pop(reply["number"])
                outcomes[reply["number"]] = Outcome(
                    value=reply.get("value"),
                    error=reply.get("error"),
                    timed_out=reply.get("timeout", False),
                    kind=reply.get("kind", ""),
                    where=reply.get("where", worker.defined[call.which]),
                )

    def _send(self, worker: Worker, call: Call, waiting: dict[int, tuple[Call, float]]) -> None:
        limit = self.timeout + (GRACE_SECONDS if worker.asynchronous[call.which] else 0.0)
        deadline = time.monotonic() + limit
        waiting[call.number] = (call, deadline)
        sample = call.sample
        if worker.functions[call.which].text_only:
            sample = replace(
                sample, prompt_ids=[], response_ids=[], loss_mask=[], logprobs=[], policy_versions=[], transcript=[]
            )
        worker.send(pickle.dumps((call.number, call.which, sample, self.timeout)), deadline)

    def _next(self, calls: deque[Call]) -> Call | None:
        with self._lock:
            return calls.popleft() if calls else None
