"""What of a run goes to the Hub, and when (`checkpoint.hub`)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rljob_api.rules.arithmetic import trains
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.checkpoint import Commit
from rljob_trainer.checkpoint.hub import HubPusher, Upload, push_token
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.models.hf_export import export_commit, is_exportable
from rljob_trainer.models.tokenizer import save_tokenizer
from rljob_trainer.orchestrator.job_directory import Incarnation

END_SECONDS = 1800.0
"""The end of a run waits so long for its last upload."""


class HubUploads:
    """Hands models to the pusher; does nothing for a job without `checkpoint.hub`."""

    def __init__(self, job: RLJob, incarnation: Incarnation, tokenizer: Any, say: Callable[[str], None]) -> None:
        """Raises UserError when the token is missing."""
        self._job, self._incarnation, self._tokenizer, self._say = job, incarnation, tokenizer, say
        self._spec = job.spec.checkpoint.hub
        self._pusher = None
        if self._spec is not None and trains(job.spec):
            endpoint = os.environ.get("HF_ENDPOINT")
            self._pusher = HubPusher(self._spec, push_token(self._spec), incarnation.directory, endpoint=endpoint)

    def committed(self, state: LoopState, commit: Commit, export: Callable[[Path], None]) -> None:
        """A commit was made. `export` writes a Hugging Face folder through the ranks, for backends whose commits
        cannot be read without them."""
        if self._pusher is None or self._spec is None or self._spec.strategy != "every_save":
            return
        path, make = commit.path, self._from_commit(commit.path)
        if not is_exportable(path):
            made = self._incarnation.directory / ".hub-export"
            shutil.rmtree(made, ignore_errors=True)
            export(made)
            make = lambda folder: _move(made, folder)  # noqa: E731
        self._pusher.push(Upload(commit.name, f"Step {state.step} of {self._job.metadata.name}", make))

    def ended(self, last: Commit | None, model: Path) -> None:
        """All steps are trained: push the final model (strategy `end`), and wait for what is under way."""
        if self._pusher is None or self._spec is None:
            return
        if self._spec.strategy == "end":
            if model.is_dir():
                make: Callable[[Path], None] | None = lambda folder: _copy(model, folder)  # noqa: E731
            else:
                make = self._from_commit(last.path) if last is not None and is_exportable(last.path) else None
            if make is None:
                self._say("nothing to push to the Hub: set checkpoint.saveHf")
            else:
                self._pusher.push(Upload("the final model", f"Final model of {self._job.metadata.name}", make))
        self._say(f"waiting for the Hub ({self._spec.model_id})")
        self._pusher.close(END_SECONDS)
        self.poll()

    def poll(self) -> None:
        """Say what happened."""
        for sentence in self._pusher.told() if self._pusher is not None else []:
            self._say(sentence)

    def in_use(self) -> set[str]:
        """Commits that are being read."""
        return set() if self._pusher is None else self._pusher.in_use()

    def close(self) -> None:
        """The run ends early: nothing is waited for."""
        if self._pusher is not None:
            self._pusher.close(0.0)
            self.poll()

    def _from_commit(self, commit: Path) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            from rljob_trainer.models import build_config
            from rljob_trainer.models.build import DTYPES

            spec = self._job.spec.model
            config = build_config(spec, self._incarnation.job_dir, self._tokenizer)
            dtype = DTYPES[spec.dtype]

            def describe(target: Path) -> None:
                describe_model(config, dtype, self._tokenizer, target)

            export_commit(commit, folder, describe, dtype)

        return make


def describe_model(config: Any, dtype: Any, tokenizer: Any, target: Path) -> None:
    """Write config and tokenizer beside weights, so that transformers and engines load the folder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not config.architectures:
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.use_cache, config.dtype = True, dtype
    config.save_pretrained(target)
    save_tokenizer(tokenizer, target)


def _move(source: Path, target: Path) -> None:
    source.rename(target)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
