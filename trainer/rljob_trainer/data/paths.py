"""Where a manifest's paths lead: relative ones start at the job's directory, on a laptop and on a cluster alike."""

from pathlib import Path

from rljob_trainer.config.errors import UserError


def resolve(path: str, job_dir: str | Path, field: str) -> Path:
    """Absolute path of `path`. Raises UserError for Hub data sets, which `field` may not name yet."""
    if path.startswith("hf://"):
        raise UserError(
            f"{field}: {path} is a data set on the Hub, which cannot be read yet",
            hint="download it as .jsonl or .parquet and give the file's path",
        )
    return Path(job_dir, path).resolve()


def existing_file(path: str, job_dir: str | Path, field: str) -> Path:
    """As `resolve`; raises UserError, saying where it looked, when no file is there."""
    resolved = resolve(path, job_dir, field)
    if resolved.is_file():
        return resolved
    relative = "" if Path(path).is_absolute() else f" (relative paths start at the job's directory, {job_dir})"
    found = "is a folder, not a file" if resolved.is_dir() else "does not exist"
    raise UserError(f"{field}: {path}: {resolved} {found}{relative}")
