"""Where a manifest's paths lead: relative ones start at the job's directory, on a laptop and on a cluster alike."""

from collections.abc import Iterator
from pathlib import Path

from rljob_api.errors import UserError
from rljob_api.rules.arithmetic import trains, trains_rl
from rljob_api.v1alpha1.hub_path import PREFIX
from rljob_api.v1alpha1.job import RLJobSpec


def resolve(path: str, job_dir: str | Path, field: str) -> Path:
    """Absolute path of a file or folder. Raises UserError for a data set on the Hub, where `field` takes none."""
    if path.startswith(PREFIX):
        raise UserError(f"{field}: {path} is a data set on the Hub; a file is needed here")
    return Path(job_dir, path).resolve()


def existing_file(path: str, job_dir: str | Path, field: str) -> Path:
    """Absolute path of `path`. Raises UserError, saying where it looked, when no file is there."""
    resolved = resolve(path, job_dir, field)
    if resolved.is_file():
        return resolved
    found = "is a folder, not a file" if resolved.is_dir() else "does not exist"
    if Path(path).is_absolute():
        raise UserError(f"{field}: {path} {found}")
    raise UserError(f"{field}: {path}: {resolved} {found} (relative paths start at the job's directory, {job_dir})")


def check_data_files(spec: RLJobSpec, job_dir: str | Path, *, sft_done: bool = False) -> None:
    """Whether the files are there that the driver will read; what comes from the Hub is not looked for.

    For a run on one machine: an index is built, and a retriever started, before the driver. Raises UserError.
    """
    for field, path in _data_paths(spec, sft_done):
        if not path.startswith(PREFIX):
            existing_file(path, job_dir, field)


def _data_paths(spec: RLJobSpec, sft_done: bool) -> Iterator[tuple[str, str]]:
    """Field and path of each data set, as `orchestrator.context.JobData` reads them."""
    if (trains_rl(spec) or spec.mode == "Generate") and spec.data.train is not None:
        yield "spec.data.train.path", spec.data.train.path
    for number, dataset in enumerate(spec.evaluation.datasets if spec.mode != "Generate" else []):
        yield f"spec.evaluation.datasets[{number}].path", dataset.path
    if spec.sft is not None and trains(spec) and not sft_done:
        yield "spec.sft.dataset.path", spec.sft.dataset.path
