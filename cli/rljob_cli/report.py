"""`rljob report`: the HTML report of a job on a cluster, finished or not, made here from the job's own files."""

import base64
import binascii
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rljob_api.rules.arithmetic import engine_count, world_size
from rljob_api.v1alpha1.job import RLJob

from rljob_cli.cluster import Cluster, Obj
from rljob_cli.exits import ClusterError
from rljob_cli.local import Output
from rljob_cli.output import Format, console, emit
from rljob_cli.reader import reading
from rljob_cli.remote import Context, Name, Namespace

LARGEST = 8 * 1024**2
"""Of a longer file the first and the last half of so many bytes are fetched."""
_SCRIPT = f"""
import base64, glob, io, os, sys, tarfile
os.chdir(sys.argv[1])
out = io.BytesIO()
names = ["summary.json", *sorted(glob.glob("attempts/*/metrics.jsonl") + glob.glob("attempts/*/completions.jsonl"))]
with tarfile.open(fileobj=out, mode="w:gz") as archive:
    for name in filter(os.path.exists, names):
        with open(name, "rb") as file:
            data = file.read() if os.path.getsize(name) <= {LARGEST} else None
            if data is None:
                head = file.read({LARGEST} // 2).rpartition(b"\\n")[0]
                file.seek(-{LARGEST} // 2, os.SEEK_END)
                data = head + b"\\n" + file.read().partition(b"\\n")[2]
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
text = base64.b64encode(out.getvalue()).decode()
print("\\n".join(text[start : start + 4096] for start in range(0, len(text), 4096)))
"""


def report(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="File; by default NAME-report.html.")
    ] = None,
    output: Output = Format.text,
) -> None:
    """Make the HTML report of a job on the cluster, while it runs or afterwards, from the files in its volume.

    A job without pods is read through a pod of its own, which is removed again.
    """
    from rljob_trainer.metrics.jsonl import COMPLETIONS_FILE, read_history
    from rljob_trainer.report.html import render

    cluster = Cluster(namespace, context)
    stored = cluster.get(name)
    target = out or Path(f"{name}-report.html")
    with tempfile.TemporaryDirectory() as folder:
        fetch(cluster, stored, Path(folder))
        history = read_history(Path(folder))
        if not history:
            raise ClusterError(f"RLJob {name} has recorded nothing yet", hint="`rljob status` says what it is doing")
        summary = summary_of(stored, history, Path(folder, "summary.json"))
        page = render(summary, history, read_history(Path(folder), COMPLETIONS_FILE), stored["spec"])
    target.write_text(page, encoding="utf-8")
    facts = {"job": name, "report": str(target), "state": summary["state"], "records": len(history)}
    emit(facts, output, lambda: console().print(f"{escape(str(target))}: {escape(summary['state'])}"))


def fetch(cluster: Cluster, stored: Obj, folder: Path) -> None:
    """Unpack the job's records and summary into `folder`."""
    name = stored["metadata"]["name"]
    storage = stored["spec"].get("storage") or {}
    directory = f"/rljob/{storage.get('subPath') or f'{cluster.namespace}/{name}'}"
    with reading(cluster, stored) as pod:
        lines = list(cluster.execute(pod, ["python", "-c", _SCRIPT, directory]))
    try:
        data = base64.b64decode("".join(lines), validate=True)
    except binascii.Error:
        raise ClusterError(
            f"the files of RLJob {name} cannot be read in pod {pod}: {lines[-1] if lines else ''}"
        ) from None
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")


def summary_of(stored: Obj, history: list[dict[str, Any]], file: Path) -> dict[str, Any]:
    """The job's own summary, or one made of its status and records while there is none."""
    status = stored.get("status") or {}
    if file.exists():
        whole: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if whole.get("steps") == status.get("step", whole.get("steps")):
            return whole
    spec = RLJob.model_validate({key: stored[key] for key in stored if key != "status"}).spec
    evaluations = {r["name"]: {"score": r["score"]} | r for r in history if r["kind"] == "evaluation"}
    seconds: dict[str, float] = {}
    for record in history:
        for key, value in record.items():
            if key.startswith("seconds/") and isinstance(value, int | float):
                phase = key.removeprefix("seconds/")
                seconds[phase] = seconds.get(phase, 0.0) + value
    rates = [r["tokens_per_second"] for r in history if r["kind"] == "rl" and r.get("tokens_per_second")]
    return {
        "job": stored["metadata"]["name"],
        "mode": spec.mode,
        "state": status.get("phase", "Pending"),
        "seed": spec.seed,
        "steps": status.get("step", 0),
        "total_steps": status.get("totalSteps", 0),
        "evaluations": evaluations,
        "tokens_per_second": sum(rates) / len(rates) if rates else None,
        "seconds": seconds.get("total", 0.0),
        "stage_seconds": {"rl": seconds.get("total", 0.0)},
        "world_size": world_size(spec),
        "engines": engine_count(spec),
        "threads_per_rank": spec.trainer.threads_per_rank,
        "versions": {},
    }
