"""The retriever of a local run that is killed or falls silent is started again where it was."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.local import retriever as local_retriever
from rljob_trainer.local.retriever import LocalRetriever, answers

from .conftest import MANIFEST

pytestmark = [pytest.mark.slow]
RETRIEVER = {
    "corpus": "world/corpus.jsonl",
    "index": {"path": "index.faiss"},
    "encoder": {"type": "hashed", "dimension": 64},
}


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.timeout(900)
def test_it_is_restarted_on_its_port_when_it_ends_or_is_silent_and_not_for_ever(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "world").symlink_to(tiny_world)
    manifest = {**MANIFEST, "spec": MANIFEST["spec"] | {"retriever": RETRIEVER}}
    job = RLJob.model_validate(manifest)
    path = tmp_path / "rljob.json"
    path.write_text(json.dumps(job.to_manifest()))
    assert job.spec.retriever is not None
    monkeypatch.setattr(local_retriever, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(local_retriever, "ANSWER_SECONDS", 2.0)
    said: list[str] = []
    with LocalRetriever(job.spec.retriever, path, tmp_path, dict(os.environ), said.append) as retriever:
        retriever.wait_ready()
        url = retriever.url
        for number, why in ((signal.SIGKILL, "ended with exit code -9"), (signal.SIGSTOP, "has not answered 3 times")):
            assert retriever._child is not None
            os.kill(retriever._child.process.pid, number)
            before = len(said)

            def restarted(before: int = before) -> bool:
                retriever.look()
                return len(said) > before

            until(restarted)
            assert why in said[-1]
            monkeypatch.setattr(local_retriever, "ANSWER_SECONDS", 300.0)  # a busy machine is not silence
            until(lambda: answers(f"{url}/readyz", 5.0))
            monkeypatch.setattr(local_retriever, "ANSWER_SECONDS", 2.0)
        assert retriever.url == url
        retriever._restarts = local_retriever.RESTARTS
        assert retriever._child is not None
        retriever._child.process.kill()
        retriever._child.process.wait()
        retriever.look()
        assert "it is not restarted any more" in said[-1]
        retriever.look()
