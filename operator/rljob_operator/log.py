"""Log lines: JSON for machines, plain for people. A JSON line says which RLJob, and which attempt, it is about."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

_about: ContextVar[tuple[str | None, int | None]] = ContextVar("about", default=(None, None))


def about(job: str | None, attempt: int | None = None) -> None:
    """What this task's lines from here on are about: a job as namespace/name, and its attempt where there is one. It
    holds beyond the caller, so that a worker's line about a look that failed has it too."""
    _about.set((job, attempt))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        job, attempt = _where(record)
        line: dict[str, str | int | None] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "job": job,
            "attempt": attempt,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False)


def _where(record: logging.LogRecord) -> tuple[str | None, int | None]:
    """The job and attempt of a line. kopf, which watches RLJobs alone, hands its own object along and knows no
    attempts."""
    ref = getattr(record, "k8s_ref", None)
    if isinstance(ref, dict) and ref.get("name"):
        return "/".join(part for part in (ref.get("namespace"), ref["name"]) if part), None
    return _about.get()


def configure(level: str, form: str) -> None:
    """Set up the root logger; kopf's own lines only when they matter."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level.upper() != "DEBUG":
        logging.getLogger("kopf").setLevel(logging.WARNING)
        logging.getLogger("aiohttp").setLevel(logging.WARNING)
