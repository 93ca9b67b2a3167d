"""Where a path of the manifest lies: relative paths are relative to the job's directory, in both places."""

from pathlib import Path

from rljob_trainer.config.errors import UserError


def resolve(job_dir: str | Path, path: str) -> Path:
    """`path` itself when absolute, else beneath `job_dir`."""
    return Path(job_dir) / path


def existing_folder(job_dir: str | Path, path: str, field: str, needs: str) -> Path:
    """The folder that `field` names, or a UserError when it, or the file `needs` within it, is not there."""
    folder = resolve(job_dir, path)
    if not folder.is_dir():
        raise UserError(
            f"{field}: the folder {path!r} is not there (looked at {folder})",
            hint="relative paths are relative to the job's directory; data.prepare may have to write it first",
        )
    if not (folder / needs).is_file():
        raise UserError(f"{field}: the folder {path!r} has no {needs}; it must be a Hugging Face folder")
    return folder
