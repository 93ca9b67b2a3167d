"""Where a path of the manifest lies: relative paths are relative to the job's directory, in both places."""

import os
from pathlib import Path

from rljob_api.contract import environment_variables as variables
from rljob_api.errors import UserError
from rljob_api.v1alpha1.model import ModelSource


def resolve(job_dir: str | Path, path: str) -> Path:
    """`path` itself when absolute, else beneath `job_dir`."""
    return Path(job_dir) / path


def model_root(source: ModelSource, job_dir: str | Path) -> Path:
    """The folder that `model.path` is relative to: the job's directory, or the claim of `model.source` as the operator
    mounts it. Raises UserError for a claim where there is none."""
    if source.type != "persistentVolumeClaim":
        return Path(job_dir)
    mounted = os.environ.get(variables.MODEL_DIR)
    if not mounted:
        raise UserError(
            f"spec.model.source: the claim {source.claim_name!r} is there on a cluster alone",
            hint="here: --set spec.model.source.type=path --set spec.model.path=FOLDER",
        )
    return Path(mounted)


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
