"""Where results are kept, and what is kept beside each: date, commit and machine."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def commit() -> str:
    """Abbreviated commit of the checkout, marked when it has changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def about() -> dict[str, object]:
    """What goes with every line."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def target() -> Path:
    """The file of today and of this commit."""
    (HERE / "results").mkdir(exist_ok=True)
    return HERE / "results" / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{commit()}.jsonl"
