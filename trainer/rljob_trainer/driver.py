"""The driver: `python -m rljob_trainer.driver --job F --dir DIR --attempt N --incarnation ID`.

It ends with an `ExitCode`: that of its `Stop` (a signal, the operator's request, a lost lease, learning health), of a
user's mistake, or of any other failure, and says so in its last report.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rljob_api.contract import environment_variables as variables
from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.job_document import load_document
from rljob_api.contract.progress import PROGRESS_KEY, Progress
from rljob_api.contract.request import ScaleRequest
from rljob_api.errors import UserError, missing_package
from rljob_api.v1alpha1.status import AttemptReason

from rljob_trainer import logs
from rljob_trainer.cluster.control import ControlPoller
from rljob_trainer.cluster.environment import ClusterEnvironment, api_client, cluster_environment
from rljob_trainer.cluster.failure_reason import reason_of
from rljob_trainer.cluster.lease import Lease, LeaseLostError, LeaseUnreachableError
from rljob_trainer.cluster.progress import HEARTBEAT_SECONDS, ProgressReporter, Sink, config_map_sink, file_sink
from rljob_trainer.orchestrator.stop import Stop, StopFlag, StopKind
from rljob_trainer.prepare import prepare

logger = logging.getLogger("rljob_trainer.driver")
_CODES: dict[StopKind, ExitCode] = {
    "suspend": ExitCode.SUSPENDED,
    "fenced": ExitCode.FENCED,
    "unreachable": ExitCode.FAILED,
    "unhealthy": ExitCode.UNHEALTHY,
    "paused": ExitCode.PAUSED,
    "rollback": ExitCode.ROLLED_BACK,
}


@dataclass(frozen=True)
class Outcome:
    """How the run ended."""

    code: ExitCode
    reason: AttemptReason
    message: str = ""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rljob_trainer.driver")
    parser.add_argument("--job", required=True, help="RLJob manifest (YAML or JSON)")
    parser.add_argument("--dir", required=True, type=Path, help="the job's directory")
    parser.add_argument("--attempt", type=int, default=1, help="number of this attempt, from 1")
    parser.add_argument("--incarnation", required=True, help="<attempt:04d>-<id>; writes only beneath attempts/<it>")
    parser.add_argument(
        "--resume-from", help="<incarnation>/commits/<name>, or none; by default the latest good commit, if any"
    )
    parser.add_argument("--local", action="store_true", help="start a Ray of its own instead of joining the cluster's")
    parser.add_argument("--quiet", action="store_true", help="show nothing on the terminal")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run, and say how it ended: on standard error, in the progress, and by the exit code."""
    options = parse(arguments)
    options.dir = options.dir.resolve()
    directory = options.dir / "attempts" / options.incarnation
    logs.copy_output_to_pod_log()
    stop = StopFlag()
    stop.on_signals()
    environment = None if options.local else cluster_environment()
    progress = _progress(options, environment)

    def run(stack: ExitStack) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _log_to(directory / "driver.log")
        _run(options, environment, stop, progress, stack)

    with ExitStack() as stack:
        outcome = _closed(_outcome(lambda: run(stack), stop), stack)
    if outcome.message and outcome.code.state == "Failed":
        more = f"\n  details: {directory / 'driver.log'}" if outcome.code == ExitCode.FAILED else ""
        print(f"error: {outcome.message}{more}", file=sys.stderr)
    elif outcome.message and not options.quiet:
        print(outcome.message, file=sys.stderr)
    logger.info("ends with code %d: %s", outcome.code, outcome.message)
    progress.close(
        state=outcome.code.state, exitCode=int(outcome.code), reason=outcome.reason, message=outcome.message[:2000]
    )
    return int(outcome.code)


def _outcome(run: Callable[[], None], stop: StopFlag) -> Outcome:
    """Run, and turn what it raises into an exit code and a sentence."""
    try:
        run()
    except Stop as request:
        code = _CODES[request.kind]
        return Outcome(code, "LeaseLost" if request.kind == "unreachable" else code.reason, request.reason)
    except UserError as error:
        logger.info("user error", exc_info=True)
        return Outcome(ExitCode.USER_ERROR, "UserError", str(error))
    except ModuleNotFoundError as error:  # another attempt would run in the same image
        logger.exception("a package is missing")
        return Outcome(ExitCode.USER_ERROR, "UserError", str(missing_package(error, "the driver")))
    except LeaseLostError as error:
        return Outcome(ExitCode.FENCED, "LeaseLost", str(error))
    except Exception as error:  # every failure ends here: the whole of it in the log, a sentence for people
        logger.exception("failed")
        if stop.fenced:  # whatever failed, failed because this driver may not go on
            return Outcome(ExitCode.FENCED, "LeaseLost", stop.reason)
        return Outcome(ExitCode.FAILED, reason_of(error), str(error) or type(error).__name__)
    return Outcome(ExitCode.DONE, "Succeeded")


def _closed(outcome: Outcome, stack: ExitStack) -> Outcome:
    """Close what the run has opened. What fails then (files on a full volume) hides no earlier failure, and the outcome
    is reported all the same."""
    try:
        stack.close()
    except Exception as error:
        logger.exception("closing failed")
        if outcome.code == ExitCode.DONE:
            return Outcome(ExitCode.FAILED, reason_of(error), str(error) or type(error).__name__)
    return outcome


def _run(
    options: argparse.Namespace,
    environment: ClusterEnvironment | None,
    stop: StopFlag,
    progress: ProgressReporter,
    stack: ExitStack,
) -> None:
    job = load_document(options.job)
    wishes: list[ScaleRequest] = []
    if environment is not None:
        _hold_lease(environment, options, stop, stack, wishes)
    if job.spec.data.prepare is not None:
        # Mostly done already, by the retriever's pods or by `rljob run`; a job without a retriever comes here first.
        prepare(job.spec.data.prepare, options.dir)
    # What follows imports torch and Ray: only after it is clear that this driver may run.
    from rljob_trainer.orchestrator.setup import run_job

    run_job(
        job, options, stop, progress, stack, os.environ.get(variables.RETRIEVER_URL), lambda: next(iter(wishes), None)
    )


def _hold_lease(
    environment: ClusterEnvironment,
    options: argparse.Namespace,
    stop: StopFlag,
    stack: ExitStack,
    wishes: list[ScaleRequest],
) -> None:
    """Take the job's lease, and listen for the operator's requests, until `stack` closes. `wishes` holds the latest
    wish for engines."""
    from kubernetes import client

    api = api_client()

    def lost(error: Exception) -> None:
        stop.request("fenced" if isinstance(error, LeaseLostError) else "unreachable", str(error))

    if environment.lease is not None:
        lease = Lease(
            client.CoordinationV1Api(api),
            environment.namespace,
            environment.lease,
            options.attempt,
            options.incarnation,
            on_lost=lost,
        )
        try:
            lease.acquire()
        except LeaseUnreachableError as error:
            raise RuntimeError(str(error)) from error
        stop.guard = lease.confirm
        stack.callback(lease.release)
    poller = ControlPoller(
        client.CoreV1Api(api),
        environment.namespace,
        environment.control_config_map,
        options.attempt,
        lambda: stop.request("suspend", "suspended as asked"),
        on_scale=lambda wish: wishes.__setitem__(slice(None), [wish]),
    )
    stack.callback(poller.close)


def _progress(options: argparse.Namespace, environment: ClusterEnvironment | None) -> ProgressReporter:
    sinks: list[Sink] = [file_sink(options.dir / "attempts" / options.incarnation / PROGRESS_KEY)]
    if options.local:
        sinks.append(file_sink(options.dir / PROGRESS_KEY))
    if environment is not None and environment.progress_config_map is not None:
        sinks.append(
            config_map_sink(api_client(), environment.namespace, environment.progress_config_map, options.attempt)
        )
    initial = Progress(
        attempt=options.attempt,
        incarnation=options.incarnation,
        stage="Prepare",
        step=0,
        total_steps=0,
        rollout=0,
        reward=None,
        tokens_per_second=None,
        goodput=None,
        policy_version=0,
        evaluation={},
        last_commit=None,
        health={},
        reward_failures=None,
        early_stop=None,
        stalled=None,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        state="Running",
        exit_code=None,
        reason=None,
        message="",
    )
    reporter = ProgressReporter(initial.to_fields(), sinks)
    reporter.update(transition=True)
    return reporter


def _log_to(path: Path) -> None:
    """Everything goes to the incarnation's log; warnings, but no tracebacks, go to standard error as well. On a
    cluster all goes to the pod's log, as JSON."""
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setLevel(logging.WARNING)
    to_terminal.addFilter(lambda record: record.exc_info is None and "\n" not in record.getMessage())
    for handler in (to_file, to_terminal):
        handler.setFormatter(logging.Formatter(logs.PLAIN))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [to_file, logs.json_handler("driver") if logs.on_cluster() else to_terminal]


if __name__ == "__main__":
    sys.exit(main())
