"""The files of a data set, local or from the Hub."""

from pathlib import Path

from rljob_api.v1alpha1.hub_path import PREFIX

from rljob_trainer.data.hub import HubAccess, fetch
from rljob_trainer.job_paths import existing_file


def data_files(path: str, split: str, job_dir: str | Path, field: str, hub: HubAccess | None = None) -> list[Path]:
    """The files of a data set: the file that `path` names, or those of a split on the Hub (`hf://…`).

    Raises UserError, saying where it looked, when there is none.
    """
    if path.startswith(PREFIX):
        return fetch(path, split, field, hub)
    return [existing_file(path, job_dir, field)]
