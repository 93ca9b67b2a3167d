"""What a run pushes to the Hub: each commit, made into a model from its files; or the final model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.checkpoint import CommitWriter
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.models import load_tokenizer
from rljob_trainer.orchestrator.hub_uploads import HubUploads
from rljob_trainer.orchestrator.job_directory import Incarnation
from rljob_trainer.weights import weights_digest

from trainer.tests.checkpoint.hub_server import local_hub
from trainer.tests.training.tiny import job, samples


def hub_of(job_dir: Path, say: Callable[[str], None], **fields: str) -> HubUploads:
    manifest = job()
    hub = {"modelId": "org/model", "token": {"name": "hub", "key": "token"}, **fields}
    manifest["spec"]["checkpoint"] = {"hub": hub}
    parsed = RLJob.model_validate(manifest)
    return HubUploads(
        parsed, Incarnation(job_dir, "0001-aaaaaaaa", local=True), load_tokenizer(parsed.spec.model, job_dir), say
    )


def test_commits_become_models_on_the_hub(
    make_rank: Callable[..., Any], job_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="the environment has no HF_PUSH_TOKEN"):
        hub_of(job_dir, print)
    rank = make_rank()
    rank.begin_rl()
    rank.rl_step(samples(1, 6), 0, 3)
    with CommitWriter(job_dir, "0001-aaaaaaaa", step=1, policy_version=1) as writer:
        writer.add(rank.save(str(writer.directory)))
        commit = writer.commit({})
    said: list[str] = []

    def never(folder: Path) -> None:
        raise AssertionError("no rank is asked")

    with local_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_PUSH_TOKEN", "hf_good")
        hub = hub_of(job_dir, said.append)
        hub.committed(LoopState("RL", step=1), commit, never)
        hub.ended(commit, job_dir / "nothing")
        at_end = hub_of(job_dir, said.append, strategy="end")
        at_end.committed(LoopState("RL", step=1), commit, never)
        rank.export_hf(str(job_dir / "model"))
        at_end.ended(commit, job_dir / "model")
        assert [message for message, _ in server.commits] == ["Step 1 of tiny", "Final model of tiny"]
        for number, (_, files) in enumerate(server.commits):
            folder = job_dir / f"downloaded-{number}"
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model = AutoModelForCausalLM.from_pretrained(folder)
            assert weights_digest(dict(model.named_parameters())) == weights_digest(rank.full_weights())
            assert len(AutoTokenizer.from_pretrained(folder)) == 40
    assert said == [
        "waiting for the Hub (org/model)",
        f"{commit.name} is on the Hub: org/model",
        "waiting for the Hub (org/model)",
        "the final model is on the Hub: org/model",
    ]
