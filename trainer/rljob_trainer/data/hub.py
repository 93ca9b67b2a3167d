"""Data sets from the Hugging Face Hub: which files a split is made of, and where they lie once they are here.

Files are downloaded into huggingface_hub's cache, which later runs and other attempts share, as one revision. A token
is read from HF_TOKEN by huggingface_hub itself; it appears in no message.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rljob_api.errors import UserError
from rljob_api.v1alpha1.hub_path import HubPath, parse_hub_path

_SUFFIXES = (".parquet", ".jsonl", ".ndjson")
_SPLITS = ("train", "test", "validation", "valid", "dev", "eval")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How the Hub is reached."""

    cache_dir: Path | None = None
    """Folder for downloads; None: huggingface_hub's own (HF_HOME)."""
    offline: bool = False
    """Use what is in the cache alone."""
    endpoint: str | None = None
    """Another Hub than huggingface.co; None: HF_ENDPOINT, or that one."""


def fetch(path: str, split: str, field: str, access: HubAccess | None = None) -> list[Path]:
    """The files of the split that `path` names, in order. `field` is the manifest's, for messages.

    Raises UserError when the data set, the revision or the split is not there, when access is denied, or when it is
    not in the cache and may not be downloaded; RuntimeError when the Hub cannot be reached.
    """
    try:
        wanted = parse_hub_path(path, split)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from None
    access = access or HubAccess()
    folder, names = _listing(wanted, path, field, access)
    files = select(names, wanted, _declared(folder(_CARD)) if _CARD in names else [])
    if not files:
        there = ", ".join([name for name in names if name.endswith(_SUFFIXES)][:10]) or "none"
        raise UserError(
            f"{field}: {path} has no .parquet or .jsonl file for split {wanted.split!r}"
            f"{f' of {wanted.config!r}' if wanted.config else ''}; its data files are: {there}"
        )
    missing = missing_shards(files)
    if missing:
        raise UserError(f"{field}: {path}: {missing} is not in the cache", hint="download the whole split once, online")
    return [folder(name) for name in files]


def select(names: Iterable[str], wanted: HubPath, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The data files of a split, sorted: those that the data set's card lists, else by folder and file name.

    A file belongs to a split that its name holds as a word (`data/train-00000-of-00002.parquet`, `nq/dev.jsonl`); one
    that names no split is of `train`.
    """
    files = sorted(name for name in names if name.endswith(_SUFFIXES))
    if configs:
        config = _config(configs, wanted.config)
        if config is not None:
            patterns = _patterns(config.get("data_files"), wanted.split)
            return [name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if wanted.config is not None:
        files = [name for name in files if wanted.config in Path(name).with_suffix("").parts]
    named = [name for name in files if _names(name, wanted.split)]
    if not named and wanted.split == "train":
        named = [name for name in files if not any(_names(name, other) for other in _SPLITS)]
    parquet = [name for name in named if name.endswith(".parquet")]
    return parquet or named


def missing_shards(files: Sequence[str]) -> str | None:
    """The first of `…-00000-of-00010` that is not among `files`: half a data set would be trained on unnoticed."""
    for name in files:
        if (shard := _SHARD.search(name)) is None:
            continue
        for number in range(int(shard[2])):
            other = f"{name[: shard.start()]}-{number:05d}-of-{shard[2]}{name[shard.end() :]}"
            if other not in files:
                return other
    return None


def _config(configs: Sequence[Mapping[str, Any]], name: str | None) -> Mapping[str, Any] | None:
    if name is not None:
        return next((config for config in configs if config.get("config_name") == name), None)
    chosen = [config for config in configs if config.get("default") or config.get("config_name") == "default"]
    return chosen[0] if chosen else configs[0] if len(configs) == 1 else None


def _patterns(data_files: Any, split: str) -> list[str]:
    """Patterns of a split in the forms that cards have: text, a list, {split: …} or [{split, path}]."""
    if isinstance(data_files, str):
        data_files = [data_files]
    if isinstance(data_files, dict):
        data_files = [{"split": name, "path": paths} for name, paths in data_files.items()]
    patterns: list[str] = []
    for entry in data_files or []:
        if isinstance(entry, str):
            patterns += [entry] if split == "train" else []
        elif isinstance(entry, dict) and entry.get("split") == split:
            path = entry.get("path")
            patterns += [path] if isinstance(path, str) else [str(each) for each in path or []]
    return patterns


def _names(name: str, split: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", name.rsplit(".", 1)[0]) is not None


def _declared(card: Path) -> list[Mapping[str, Any]]:
    """`configs` of the card's front matter; none when there is no such thing."""
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return []
    try:
        front = yaml.safe_load(text[3:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return []
    configs = front.get("configs") if isinstance(front, dict) else None
    return [config for config in configs or [] if isinstance(config, dict) and config.get("data_files")]


class _Snapshot:
    """One revision of a data set: gives a file's path, downloading it when it is not in the cache."""

    def __init__(self, wanted: HubPath, path: str, field: str, access: HubAccess, commit: str | None) -> None:
        self._wanted, self._path, self._field, self._access, self._commit = wanted, path, field, access, commit

    def __call__(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        file = _asking(
            self._path,
            self._field,
            lambda: hf_hub_download(
                self._wanted.repo,
                name,
                repo_type="dataset",
                revision=self._wanted.revision,
                cache_dir=self._access.cache_dir,
                local_files_only=self._access.offline,
                endpoint=self._access.endpoint,
            ),
        )
        if self._commit is not None and self._commit not in Path(file).parts:
            raise RuntimeError(f"{self._field}: {self._path} was changed while it was downloaded")
        return Path(file)


def _listing(wanted: HubPath, path: str, field: str, access: HubAccess) -> tuple[_Snapshot, list[str]]:
    """The names of a revision's files, and access to them."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import is_offline_mode

    if access.offline or is_offline_mode():
        offline = HubAccess(access.cache_dir, True, access.endpoint)
        folder = _asking(
            path,
            field,
            lambda: snapshot_download(
                wanted.repo,
                repo_type="dataset",
                revision=wanted.revision,
                cache_dir=access.cache_dir,
                local_files_only=True,
            ),
        )
        names = [str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()]
        return _Snapshot(wanted, path, field, offline, None), names
    api = HfApi(endpoint=access.endpoint)
    info = _asking(path, field, lambda: api.dataset_info(wanted.repo, revision=wanted.revision, timeout=30.0))
    names = [sibling.rfilename for sibling in info.siblings or []]
    return _Snapshot(wanted, path, field, access, info.sha), names


def _asking(path: str, field: str, call: Any) -> Any:
    """Call huggingface_hub; its errors in our words, without its paragraphs of advice."""
    from huggingface_hub import errors

    try:
        return call()
    except errors.GatedRepoError:
        problem, hint = "access is restricted", "accept its terms on the Hub and set HF_TOKEN (model.source.token)"
    except errors.RepositoryNotFoundError:
        problem, hint = "there is no such data set, or it is private", "check the name; a private one needs HF_TOKEN"
    except errors.RevisionNotFoundError:
        problem, hint = "there is no such revision", "name a branch, a tag or a commit after @"
    except errors.LocalEntryNotFoundError as error:
        if "offline" not in str(error).lower() and "local_files_only" not in str(error):
            raise RuntimeError(f"{field}: {path}: the Hub cannot be reached: {_first_line(error)}") from error
        problem, hint = "it is not in the cache, and may not be downloaded (offline)", "run once online, or give a file"
    except errors.EntryNotFoundError as error:
        problem, hint = _first_line(error), "give another split or revision"
    except (errors.HfHubHTTPError, OSError) as error:
        raise RuntimeError(f"{field}: {path}: the Hub cannot be reached: {_first_line(error)}") from error
    raise UserError(f"{field}: {path}: {problem}", hint=hint)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
