"""What an engine writes into its pod's log while all is well."""

import asyncio
import json
import logging
import os
import re
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rljob_trainer.quickstart.tokenizer import write_tokenizer
from rljob_trainer.workers.rollout_worker import RolloutWorker

from trainer.tests.warm import WarmProcess


class Engine:
    """As SGLang's, it sets up the log of the whole process."""

    def __init__(self, log_level: str, **arguments: Any) -> None:
        logging.basicConfig(level=log_level.upper(), format="[%(asctime)s] %(message)s", force=True)
        self.tokenizer_manager = SimpleNamespace()
        logging.getLogger("sglang.srt").info("chatter")


def serve(arguments: list[str]) -> None:
    """The process of an engine: `serve MANIFEST JOB_DIR GPUS`."""
    for name in ("sglang", "sglang.srt", "sglang.srt.entrypoints", "sglang.srt.entrypoints.engine"):
        sys.modules[name] = ModuleType(name)
    sys.modules["sglang.srt.entrypoints.engine"].Engine = Engine  # type: ignore[attr-defined]

    async def start() -> None:
        worker = RolloutWorker(json.loads(arguments[0]), arguments[1], 3)
        await worker.start(arguments[2])
        logging.getLogger("sglang.srt").info("chatter")
        logging.getLogger("sglang.srt").warning("trouble")

    asyncio.run(start())


def manifest(job_dir: Path, **rollout: Any) -> dict[str, Any]:
    write_tokenizer(job_dir / "tokenizer", ("home",), ("Zafo", "Miru"))
    shape = {"hiddenSize": 32, "intermediateSize": 48, "numHiddenLayers": 1}
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "demo"},
        "spec": {
            "model": {"tokenizerPath": "tokenizer", "randomInit": shape, "dtype": "float32"},
            "data": {"train": {"path": "x.jsonl"}},
            "tracking": {"metricsPort": 0},
            "rollout": {"maxContextLength": 64} | rollout,
        },
    }


def ready(told: str) -> str:
    """Pattern of the line."""
    return rf"engine 3 is ready for weights after \d+\.\d s: {told} of {socket.gethostname()}, float32, up to 64 tokens"


async def test_an_engine_says_when_it_is_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    worker = RolloutWorker(manifest(tmp_path, engine="torch"), str(tmp_path), 3)
    await worker.start()
    await worker.shutdown()
    (line,) = [record.getMessage() for record in caplog.records if "ready" in record.getMessage()]
    assert re.fullmatch(ready("torch on the CPU"), line)


@pytest.mark.slow
def test_the_pods_log_has_the_line_of_an_engine_that_sets_up_logging_itself(tmp_path: Path) -> None:
    log = tmp_path / "pod.log"
    cluster = {"RLJOB_NAME": "demo", "RLJOB_ATTEMPT": "2", "RLJOB_POD_LOG": str(log)}
    job = json.dumps(manifest(tmp_path, engine="sglang", gpusPerEngine=2))
    process = WarmProcess(serve, [job, str(tmp_path), "4,5"], env=os.environ | cluster, output=tmp_path / "engine")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (line,) = [line for line in lines if "ready" in line["message"]]
    assert re.fullmatch(ready(r"sglang on 2 GPUs \(CUDA_VISIBLE_DEVICES 4,5\)"), line["message"])
    where = {key: line[key] for key in ("level", "job", "attempt", "role", "index")}
    assert where == {"level": "info", "job": "demo", "attempt": 2, "role": "engine", "index": 3}
    # What SGLang itself says keeps to SGLang's log level.
    assert [line["message"] for line in lines if line["logger"].startswith("sglang")] == ["trouble"]
