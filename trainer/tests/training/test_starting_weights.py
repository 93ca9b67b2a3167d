"""Where a policy's weights come from: a model, another job's commit, a Megatron checkpoint; and which when."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_trainer.checkpoint import CommitWriter
from rljob_trainer.export.run import hf_to_torch_dist
from rljob_trainer.weights import weights_digest

from trainer.tests.training.rank_processes import run
from trainer.tests.training.tiny import demonstrations, job, samples

Make = Callable[..., Any]


def digest(rank: Any) -> str:
    return weights_digest(rank.full_weights())


@pytest.fixture
def trained(make_rank: Make, job_dir: Path) -> str:
    """A model that was trained a little, as `model` (Hugging Face), `mcore` (Megatron), and a commit of the job `other`
    beside this one's directory. Returns its digest."""
    rank = make_rank()
    rank.begin_rl()
    rank.rl_step(samples(1, 6), 0, 3)
    rank.export_hf(str(job_dir / "model"))
    hf_to_torch_dist(job_dir / "model", job_dir / "mcore", divisible_by=64)
    other = job_dir.parent / f"{job_dir.name}-other"
    with CommitWriter(other, "0001-aaaaaaaa", step=1, policy_version=1) as writer:
        writer.add(rank.save(str(writer.directory)))
        writer.commit({})
    return digest(rank)


def other_job(job_dir: Path) -> str:
    return f"{job_dir.name}-other".replace("_", "-")


@pytest.mark.parametrize("kind", ["model", "mcore", "commit", "job directory"])
def test_load_takes_weights_of_every_kind(kind: str, make_rank: Make, trained: str, job_dir: Path) -> None:
    other = job_dir.parent / f"{job_dir.name}-other"
    path = {"commit": other / "attempts/0001-aaaaaaaa/commits/step-000001", "job directory": other}.get(kind)
    rank = make_rank({"checkpoint": {"load": str(path or kind)}, "seed": 99})
    assert digest(rank) == trained
    rank.begin_rl()
    assert rank.rl_step(samples(2, 6), 0, 3)["kl"] == 0.0  # the reference is what RL began with


def test_an_empty_folder_falls_back(make_rank: Make, trained: str, job_dir: Path) -> None:
    (job_dir / "empty").mkdir()
    for load in ("empty", "nowhere"):
        assert digest(make_rank({"checkpoint": {"load": load, "refLoad": "mcore"}})) == trained
        assert digest(make_rank({"checkpoint": {"load": load}})) == digest(make_rank())
    model = {"path": "model", "randomInit": None, "dtype": "float32"}
    assert digest(make_rank({"model": model, "checkpoint": {"load": "empty"}})) == trained


def test_a_model_of_its_own_is_read_as_transformers_reads_it(make_rank: Make, trained: str, job_dir: Path) -> None:
    model = {"path": "model", "randomInit": None, "dtype": "float32"}
    rank = make_rank({"model": model})
    assert digest(rank) == trained
    first = rank.sft_step(demonstrations(1, 6), 0, 3)
    # The same weights under names of an older format: loaded whole, with the same numbers.
    from safetensors.torch import load_file, save_file

    weights = {
        name.removeprefix("model."): value for name, value in load_file(job_dir / "model/model.safetensors").items()
    }
    shutil.copytree(job_dir / "model", job_dir / "old")
    save_file(weights, job_dir / "old/model.safetensors", metadata={"format": "pt"})
    again = make_rank({"model": {**model, "path": "old"}})
    assert digest(again) == trained
    assert again.sft_step(demonstrations(1, 6), 0, 3) == first


def test_a_warm_start_takes_weights_or_the_optimizer_as_well(make_rank: Make, trained: str, job_dir: Path) -> None:
    warm = {"job": other_job(job_dir)}
    if warm["job"] != f"{job_dir.name}-other":
        (job_dir.parent / f"{job_dir.name}-other").rename(job_dir.parent / warm["job"])
    rank = make_rank({"checkpoint": {"warmStart": warm}})
    assert digest(rank) == trained
    with pytest.raises(UserError, match=r"is of reinforcement learning, this job begins with supervised fine-tuning"):
        make_rank({"checkpoint": {"warmStart": {**warm, "optimizer": True}}})
    results = []
    for optimizer in (False, True):
        rank = make_rank({"sft": None, "checkpoint": {"warmStart": {**warm, "optimizer": optimizer}}})
        rank.begin_rl()
        rank.rl_step(samples(2, 6), 1, 3)
        results.append(digest(rank))
    assert results[0] != results[1]
    for changed, message in (
        ({"job": "nobody"}, "there is no directory of the job 'nobody'"),
        ({"commit": "0001-aaaaaaaa/commits/step-000009"}, "has no commit"),
    ):
        with pytest.raises(UserError, match=message):
            make_rank({"checkpoint": {"warmStart": {**warm, **changed}}})


def test_other_weights_are_refused_in_words(make_rank: Make, trained: str, job_dir: Path) -> None:
    (job_dir / "notes").mkdir()
    (job_dir / "notes/readme.txt").write_text("nothing")
    with pytest.raises(UserError, match="neither a Hugging Face folder, nor a Megatron checkpoint, nor a commit"):
        make_rank({"checkpoint": {"load": "notes"}})
    with pytest.raises(UserError, match="refLoad: 'nowhere' is not there"):
        make_rank({"checkpoint": {"refLoad": "nowhere"}}).begin_rl()
    shape = {
        "hiddenSize": 32,
        "intermediateSize": 24,
        "numHiddenLayers": 2,
        "numAttentionHeads": 2,
        "numKeyValueHeads": 1,
    }
    for load in ("model", "mcore"):
        with pytest.raises(UserError, match=r"has shape .* the model needs"):
            make_rank({"model": {"randomInit": shape}, "checkpoint": {"load": load}})
    commit = job_dir.parent / f"{job_dir.name}-other/attempts/0001-aaaaaaaa/commits/step-000001"
    content = bytearray((commit / "trainer-00000-of-00001.safetensors").read_bytes())
    content[-1] ^= 1
    (commit / "trainer-00000-of-00001.safetensors").write_bytes(bytes(content))
    with pytest.raises(UserError, match="SHA-256 differs"):
        make_rank({"checkpoint": {"load": str(commit)}})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ranks_read_their_own_rows(make_rank: Make, job_dir: Path) -> None:
    """Three ranks on tensors that do not divide, tied embeddings, bfloat16: the same bits as one rank has."""
    manifest = job()
    manifest["spec"]["model"]["randomInit"]["tieWordEmbeddings"] = True
    make_rank({"model": manifest["spec"]["model"]}).export_hf(str(job_dir / "model"))
    manifest["spec"]["model"] = {"path": "model", "dtype": "bfloat16"}
    one = run(job_dir, 1, [["load", None], ["sft", 1, 9]], manifest)
    three = run(job_dir, 3, [["load", None]], manifest)
    assert three["digest"] == run(job_dir, 1, [["load", None]], manifest)["digest"]
    after = run(job_dir, 3, [["load", None], ["sft", 1, 9]], manifest)
    assert after["metrics"][0]["loss"] == pytest.approx(one["metrics"][0]["loss"], rel=1e-2)
