"""Exit codes of every `rljob` command, and the errors that carry them."""

from rljob_api.errors import UserError

OK = 0
FAILED = 1
USER_ERROR = 2
NO_CLUSTER = 3
SUSPENDED = 4
INTERRUPTED = 130

MEANINGS = {
    OK: "done; for `run` and `submit --wait`: all steps that were asked for are trained",
    FAILED: "the job failed, or rljob itself did (a log of the error is named)",
    USER_ERROR: "a mistake in the manifest or on the command line; nothing was started",
    NO_CLUSTER: "the cluster, the RLJob API or the object is not there, or access is denied",
    SUSPENDED: "the job was suspended (locally: interrupted) after a commit; run or resume it again to go on",
    INTERRUPTED: "interrupted before anything was committed",
}
"""What each code means; shown by `--help` and in docs/cli.md."""


class ClusterError(UserError):
    """The cluster, the API or the object cannot be reached."""

    exit_code = NO_CLUSTER
