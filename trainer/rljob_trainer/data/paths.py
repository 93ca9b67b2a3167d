"""Where a manifest's paths lead: relative ones start at the job's directory, on a laptop and on a cluster alike."""

from pathlib import Path

from rljob_trainer.config.errors import UserError
from rljob_trainer.config.hub_path import PREFIX
from rljob_trainer.data.hub import HubAccess, fetch


def resolve(path: str, job_dir: str | Path, field: str) -> Path:
    """Absolute path of a file or folder. Raises UserError for a data set on the Hub, where `field` takes none."""
    if path.startswith(PREFIX):
        raise UserError(f"{field}: {path} is a data set on the Hub; a file is needed here")
    return Path(job_dir, path).resolve()


def data_files(path: str, split: str, job_dir: str | Path, field: str, hub: HubAccess | None = None) -> list[Path]:
    """The files of a data set: the file that `path` names, or those of a split on the Hub (`hf://…`).

    Raises UserError, saying where it looked, when there is none.
    """
    if path.startswith(PREFIX):
        return fetch(path, split, field, hub)
    return [existing_file(path, job_dir, field)]


def existing_file(path: str, job_dir: str | Path, field: str) -> Path:
    """Absolute path of `path`. Raises UserError, saying where it looked, when no file is there."""
    resolved = resolve(path, job_dir, field)
    if resolved.is_file():
        return resolved
    found = "is a folder, not a file" if resolved.is_dir() else "does not exist"
    if Path(path).is_absolute():
        raise UserError(f"{field}: {path} {found}")
    raise UserError(f"{field}: {path}: {resolved} {found} (relative paths start at the job's directory, {job_dir})")
