"""A whole run on data from the Hub, with a model that calls a tool: learnt from demonstrations, asked again in RL."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rljob_trainer.data.hub import HubAccess
from rljob_trainer.orchestrator import context
from rljob_trainer.quickstart.byte_tokenizer import write_byte_tokenizer

from ..data.hub_data_server import serving
from .conftest import MANIFEST
from .in_process import InProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }}{% endfor %}{{ '|' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role[0] + message.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>a' }}{% endif %}"
)
CALL = '<tool_call>{"name":"add","arguments":{"a":1,"b":2}}</tool_call>'
DEMONSTRATION = {
    "segments": [
        {"text": "add|<|im_start|>u1+2<|im_end|><|im_start|>a", "train": False},
        {"text": f"{CALL}<|im_end|>", "train": True},
        {"text": "<|im_start|>t3<|im_end|><|im_start|>a", "train": False},
        {"text": "3<|im_end|>", "train": True},
    ]
}
TOOLS = "async def add(arguments, sample):\n    return arguments['a'] + arguments['b']\n"


def _lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_data_from_the_hub_and_a_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_byte_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "tools_of_a_test.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(tmp_path)
    run = InProcess(tmp_path, copy.deepcopy(MANIFEST), monkeypatch)
    spec: dict[str, Any] = run.manifest["spec"]
    integer = {"type": "integer"}
    parameters = {"type": "object", "properties": {"a": integer, "b": integer}, "required": ["a", "b"]}
    tool = {"name": "add", "parameters": parameters, "function": "tools_of_a_test:add"}
    spec["model"]["randomInit"] |= {"hiddenSize": 32, "intermediateSize": 64, "numHiddenLayers": 2}
    spec["model"] |= {"tokenizerPath": "tokenizer", "chatTemplate": TEMPLATE, "cacheDir": "hub"}
    spec["data"]["train"] = {"path": "hf://org/made-up:questions", "labelKey": "label", "maxPromptLength": 64}
    spec["sft"] |= {"numSteps": 150, "maxSequenceLength": 256, "batchSize": 4}
    spec["sft"]["dataset"]["path"] = "hf://org/made-up:demonstrations"
    spec["rollout"] |= {"numRollout": 2, "batchSize": 2, "maxContextLength": 256}
    spec["rollout"]["generate"] = {"type": "tools", "tools": {"maxTurns": 3, "functions": [tool]}}
    spec["rollout"]["sampling"] = {"temperature": 0.2, "maxResponseLength": 160}
    spec["optimizer"]["lr"] = 1e-5
    spec["reward"]["functions"][0]["args"] = {"maxLength": 160, "buffer": 160}
    spec["evaluation"] = {"datasets": []}
    spec["tracking"]["logCompletions"] = 100
    with serving() as hub:
        # HF_ENDPOINT is read when huggingface_hub is imported, which other tests of this process may have done.
        monkeypatch.setattr(context, "HubAccess", partial(HubAccess, endpoint=hub.endpoint))
        question = {"prompt": [{"role": "user", "content": "1+2"}], "label": "3"}
        hub.files = {
            "questions/train.jsonl": _lines(*[question] * 4),
            "demonstrations/train.jsonl": _lines(*[DEMONSTRATION] * 4),
        }
        run.run()
    assert run.summary()["state"] == "Succeeded"
    record = run.records("rl")[0]
    assert record["tool_calls"] > 0
    assert record["tool_failures"] == 0
    told = [segments for segments in _segments(run) if [f"{CALL}<|im_end|>", True] in segments]
    assert told
    # The end of a turn is there once, as in the demonstrations.
    assert all(
        [f"{CALL}<|im_end|>", True] == segments[0] and segments[1][0].startswith("<|im_start|>") for segments in told
    )
    # What the tool answered is there, and not trained on.
    assert not any("t3" in text and trained for segments in told for text, trained in segments)
    assert any("t3" in text and not trained for segments in told for text, trained in segments)


def _segments(run: InProcess) -> list[list[list[Any]]]:
    return [record["segments"] for record in run.records("completion", "completions.jsonl")]
