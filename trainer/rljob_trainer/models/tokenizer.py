"""The tokenizer of a job."""

import json
from pathlib import Path
from typing import Any

from rljob_api.errors import UserError
from rljob_api.v1alpha1.model import ModelSpec

from rljob_trainer.models.paths import existing_folder, model_root, resolve

PLAIN_CLASS = "PreTrainedTokenizerFast"


def load_tokenizer(spec: ModelSpec, job_dir: str | Path) -> Any:
    """The transformers tokenizer of `model.tokenizerPath`, or the one in `model.path`.

    Raises UserError when neither is given, when the folder is missing or is no tokenizer's, or when a Hub id cannot
    be loaded.
    """
    field = "spec.model.tokenizerPath" if spec.tokenizer_path else "spec.model.path"
    path = spec.tokenizer_path or spec.path
    if path is None:
        raise UserError("spec.model.tokenizerPath is required with spec.model.randomInit")
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if spec.source.type in ("auto", "hub") and not resolve(job_dir, path).is_dir() and is_hub_id(path):
        source = path
        options |= {
            "revision": spec.revision,
            "cache_dir": str(resolve(job_dir, spec.cache_dir)) if spec.cache_dir else None,
            "local_files_only": spec.offline,
        }
    else:
        root = job_dir if spec.tokenizer_path else model_root(spec.source, job_dir)
        source = str(existing_folder(root, path, field, "tokenizer_config.json"))
    try:
        tokenizer = _tokenizer_class(Path(source)).from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: no tokenizer could be loaded from {path!r}: {first_line(error)}") from error
    if spec.chat_template is not None:
        tokenizer.chat_template = chat_template(spec.chat_template, job_dir)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Write `tokenizer` so that it is loaded as the same one.

    transformers 5 writes down its new name for `PreTrainedTokenizerFast`. Other versions do not know it, and with it
    `AutoTokenizer` takes the class of the model's family instead, which splits words by rules of its own.
    """
    tokenizer.save_pretrained(folder)
    file = Path(folder) / "tokenizer_config.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    if known.get("tokenizer_class") == "TokenizersBackend":
        known["tokenizer_class"] = PLAIN_CLASS
        file.write_text(json.dumps(known, indent=1, ensure_ascii=False), encoding="utf-8")


def chat_template(given: str, job_dir: str | Path) -> str:
    """The template itself, or the content of the file that `given` names (`….jinja`)."""
    if "\n" in given or not given.endswith(".jinja"):
        return given
    file = resolve(job_dir, given)
    if not file.is_file():
        raise UserError(f"spec.model.chatTemplate: the file {given!r} is not there (looked at {file})")
    return file.read_text(encoding="utf-8")


def _tokenizer_class(folder: Path) -> Any:
    """The class that loads a tokenizer. A plain `PreTrainedTokenizerFast` is taken directly: `AutoTokenizer` would
    import every model's registry first, six seconds of CPU in each process."""
    config = folder / "tokenizer_config.json"
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class") == PLAIN_CLASS:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def is_hub_id(path: str) -> bool:
    """Whether `path` has the form of a Hub id, `org/name`, rather than that of a folder."""
    return path.count("/") == 1 and not path.startswith((".", "/")) and not path.endswith("/")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message: libraries append paragraphs of advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
