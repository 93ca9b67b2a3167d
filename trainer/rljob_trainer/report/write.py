"""Writes summary.json and report.html into the job's directory, each in one step."""

import json
from pathlib import Path
from typing import Any

from rljob_trainer.atomic_files import write_file
from rljob_trainer.metrics.jsonl import COMPLETIONS_FILE, plain, read_history
from rljob_trainer.report.html import render

SUMMARY_FILE, REPORT_FILE = "summary.json", "report.html"


def write_report(job_dir: Path, summary: dict[str, Any], manifest: Any) -> None:
    """Write both from the histories of all incarnations."""
    page = render(summary, read_history(job_dir), read_history(job_dir, COMPLETIONS_FILE), manifest)
    write_file(job_dir / REPORT_FILE, page, fsync=False)
    write_file(job_dir / SUMMARY_FILE, json.dumps(plain(summary), indent=2) + "\n", fsync=False)
