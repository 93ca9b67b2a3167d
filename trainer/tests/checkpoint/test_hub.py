"""Pushing to a Hub: in the background, tried again, told, never fatal."""

import logging
import threading
from pathlib import Path

import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.checkpoint import HubPush
from rljob_trainer.checkpoint.hub import HubPusher, Upload, push_token

from .hub_server import local_hub

SPEC = HubPush.model_validate({"modelId": "org/model", "token": {"name": "hub", "key": "token"}})


def upload(name: str, content: str = "weights") -> Upload:
    def make(folder: Path) -> None:
        (folder / "sub").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "sub/weights.txt").write_text(content)

    return Upload(name, f"Message of {name}", make)


def test_a_folder_arrives_whole_after_a_hub_that_was_busy(tmp_path: Path) -> None:
    with local_hub() as hub:
        hub.failures = 1
        pusher = HubPusher(SPEC, "hf_good", tmp_path, endpoint=hub.url, pauses=(0.01, 0.01))
        pusher.push(upload("one"))
        pusher.close(60)
        assert pusher.told() == ["one is on the Hub: org/model"]
        assert hub.commits == [("Message of one", {"config.json": b"{}", "sub/weights.txt": b"weights"})]
        assert hub.repositories[0]["name"] == "model"
        asked = hub.repositories[0]  # the field has another name in older versions
        assert asked.get("visibility") == "private" or asked.get("private") is True
    assert list(tmp_path.iterdir()) == []  # what was uploaded is gone from the disk


def test_what_fails_is_told_and_raises_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with local_hub() as hub, caplog.at_level(logging.INFO):
        refused = HubPusher(SPEC, "hf_wrong_secret", tmp_path, endpoint=hub.url, pauses=(60.0,))
        refused.push(upload("one"))
        refused.close(30)  # an answer that says no is not tried again
        (sentence,) = refused.told()
        assert sentence.startswith("one was not pushed to the Hub: ")
        assert "401" in sentence
        assert "hf_wrong_secret" not in caplog.text + sentence

        def broken(folder: Path) -> None:
            raise OSError("the commit is gone")

        pusher = HubPusher(SPEC, "hf_good", tmp_path, endpoint=hub.url, pauses=())
        pusher.push(Upload("two", "two", broken))
        pusher.close(30)
        assert pusher.told() == ["two was not pushed to the Hub: the commit is gone"]
        assert hub.commits == []


def test_nobody_waits_for_a_slow_hub(tmp_path: Path) -> None:
    with local_hub() as hub:
        hub.gate = threading.Event()
        pusher = HubPusher(SPEC, "hf_good", tmp_path, endpoint=hub.url)
        pusher.push(upload("one"))
        while pusher.in_use() != {"one"} or not (tmp_path / "hub").exists():
            pass
        pusher.push(upload("two"))
        pusher.push(upload("three"))
        assert pusher.in_use() == {"one", "three"}
        assert pusher.told() == ["two was not pushed to the Hub: a newer one came"]
        pusher.close(0.05)
        assert pusher.told() == [
            "one was not pushed to the Hub within 0 s of the end",
            "three was not pushed to the Hub within 0 s of the end",
        ]
        hub.gate.set()


def test_the_token_comes_from_the_environment() -> None:
    assert push_token(SPEC, {"HF_PUSH_TOKEN": "x"}) == "x"
    named = HubPush.model_validate({"modelId": "a/b", "token": {"name": "hub", "key": "token", "env": "MY_HUB"}})
    assert push_token(named, {"MY_HUB": "y"}) == "y"
    with pytest.raises(UserError, match=r"spec\.checkpoint\.hub\.token: the environment has no HF_PUSH_TOKEN"):
        push_token(SPEC, {})
