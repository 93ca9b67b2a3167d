"""Start the retriever: `python -m rljob_trainer.retriever --job F --dir DIR`.

The index is built first when it is missing and the job allows it. SIGTERM: no new requests, those that wait are
answered, exit code 0. Exit code 2: a mistake in the job, in one sentence on standard error.
"""

import argparse
import logging
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from rljob_api.contract.job_document import load_document
from rljob_api.errors import UserError
from rljob_api.v1alpha1.retriever import RetrieverSpec

from rljob_trainer import logs
from rljob_trainer.atomic_files import write_file
from rljob_trainer.retriever.app import Limits, create_app
from rljob_trainer.retriever.build import build_index
from rljob_trainer.retriever.random_passages import load_random
from rljob_trainer.retriever.search import Searcher, load_searcher

log = logging.getLogger("rljob_trainer.retriever")


def _bind(host: str, port: int, or_free: bool) -> socket.socket:
    """A listening socket; on another free port when `port` is busy and `or_free`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if port and or_free:
            log.warning("port %d is busy (%s): taking a free one", port, error.strerror)
            return _bind(host, 0, or_free=False)
        raise UserError(
            f"spec.retriever.port: {host}:{port} cannot be listened on: {error.strerror}",
            hint="another service has it: end that one, or give another port",
        ) from None
    return listener


def _limits(spec: RetrieverSpec, request_timeout: float) -> Limits:
    return Limits(
        topk=spec.topk,
        max_batch=spec.max_batch_size,
        window=spec.batch_window_milliseconds / 1000,
        max_queued=spec.max_queued_queries,
        request_timeout=request_timeout,
    )


def serve(spec: RetrieverSpec, job_name: str, options: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code."""

    def load_job_searcher() -> Searcher:
        if options.unrelated:
            return load_random(spec, options.dir)
        build_index(spec, options.dir)
        return load_searcher(spec, options.dir)

    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(load_job_searcher, _limits(spec, options.request_timeout), fail, job_name)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=30, timeout_keep_alive=75
    )
    server = uvicorn.Server(config)
    port = spec.port if options.port is None else options.port
    listener = _bind(options.host, port, or_free=options.port_file is not None)
    port = listener.getsockname()[1]
    if options.port_file:
        write_file(Path(options.port_file), f"{port}\n".encode())
    log.info("listening on %s:%d", options.host, port)
    # uvicorn raises the signal again after a graceful stop: that stop is a success.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    server.run(sockets=[listener])
    if failures:
        raise failures[0]
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m rljob_trainer.retriever")
    parser.add_argument("--job", required=True, help="RLJob manifest (YAML or JSON)")
    parser.add_argument("--dir", required=True, help="the job's directory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (0.0.0.0 in a pod)")
    parser.add_argument("--port", type=int, help="port, 0 for a free one; by default spec.retriever.port")
    parser.add_argument("--port-file", help="write the port here; a free one is taken when the wanted one is busy")
    parser.add_argument("--request-timeout", type=float, default=60.0, help="seconds until a request is answered 504")
    parser.add_argument("--unrelated", action="store_true", help="answer unrelated documents of the same corpus")
    options = parser.parse_args(arguments)
    logs.configure("retriever", form="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    try:
        job = load_document(options.job, ("spec", "retriever"))
        spec = job.spec.retriever
        if spec is None:
            raise UserError("spec.retriever: the job has none, so there is nothing to serve")
        return serve(spec, job.metadata.name, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
