"""Ray workers that begin as copies of a process that has imported what ranks and engines need.

A driver's process calls `serve_workers` before anything else. That forks a server, and tells Ray that a small program
is the interpreter of its workers: the program hands a worker's command line, environment and streams to the server,
which forks again and runs Ray's own script. Everything else it hands to the real interpreter. The server and its
copies stay in the driver's process group, and end with the driver and with its raylet.
"""

import array
import ctypes
import json
import os
import runpy
import signal
import socket
import stat
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_MESSAGE_BYTES = 1 << 20
_PROGRAM = """#!{python} -IS
import array, json, os, socket, sys
script = os.path.basename(sys.argv[1]) if len(sys.argv) > 1 else ""
if script not in ("setup_worker.py", "default_worker.py"):
    os.execv({executable!r}, [{executable!r}, *sys.argv[1:]])
asked = json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "directory": os.getcwd()}}).encode()
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, {size})
server.connect({address!r})
server.sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.recv(1)
"""


def serve_workers(directory: Path) -> None:
    """Fork the server; `directory` gets the program. To be called while the process has one thread."""
    address = f"\0rljob-tests-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    program = directory / "python"
    real = os.path.realpath(sys.executable)
    program.write_text(
        _PROGRAM.format(python=real, executable=sys.executable, size=_MESSAGE_BYTES, address=address), encoding="utf-8"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    driver = os.getpid()
    if os.fork() == 0:
        try:
            _end_with(driver)
            _serve(listener, str(program))
        finally:
            os._exit(1)
    listener.close()
    _start_workers_by(str(program))


def _start_workers_by(program: str) -> None:
    from ray._private import services  # only now: the server's copies import Ray themselves

    start = services.start_raylet

    def start_raylet(*args: Any, **options: Any) -> Any:
        real, sys.executable = sys.executable, program
        try:
            return start(*args, **options)
        finally:
            sys.executable = real

    services.start_raylet = start_raylet


def _end_with(driver: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(0)


def _serve(listener: socket.socket, program: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the copies
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        client, _ = listener.accept()
        with client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MESSAGE_BYTES)
            files = array.array("i")
            text, extra, *_ = client.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(3 * files.itemsize))
            for _, _, data in extra:
                files.frombytes(data)
            if os.fork() == 0:
                listener.close()
                _become(json.loads(text), list(files), program)
            for file in files:
                os.close(file)
            client.send(b".")


def _become(asked: dict[str, Any], files: list[int], program: str) -> None:
    """Run the script as the interpreter would. Does not return."""
    code: int | None = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["directory"])
        sys.argv[:] = asked["argv"]
        if os.path.basename(sys.argv[0]) == "setup_worker.py":
            sys.executable = program  # by which it starts the worker
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - told as an interpreter would
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError):
                stream.flush()
        os._exit(code or 0)
