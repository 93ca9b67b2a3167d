"""The quickstart's world learnt on one GPU: a model of more than 100M parameters, fsdp and SGLang in turns.

`python -m benchmarks.gpu.learns [--rollouts 25] [--placement colocated|disaggregated|async]`. The retriever is a plain
one over the same hashed encoder, so that the proof needs no FAISS; everything else is the product's driver.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.gpu.common import ENGINE_ARGS, emit

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
MODEL = {"hiddenSize": 768, "intermediateSize": 2048, "numHiddenLayers": 18, "numAttentionHeads": 12,
         "numKeyValueHeads": 2, "initializerRange": 0.02}  # fmt: skip


def serve(corpus: Path) -> str:
    """Search-R1's /retrieve over `corpus`, on a thread. Returns its address."""
    from rljob_trainer.retriever.hashed import HashedEncoder

    passages = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    encoder = HashedEncoder(256)
    matrix = encoder.encode_passages([passage["contents"] for passage in passages])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            scores = encoder.encode_queries(body["queries"]) @ matrix.T
            best = np.argsort(-scores, axis=1, kind="stable")[:, : int(body.get("topk") or 3)]
            result = [
                [{"document": passages[i], "score": float(scores[row, i])} for i in found]
                for row, found in enumerate(best)
            ]
            answer = json.dumps({"result": result}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def job(placement: str, rollouts: int, url: str) -> dict[str, Any]:
    """The quickstart's manifest, larger and on GPUs."""
    manifest: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    spec = manifest["spec"]
    manifest["metadata"]["name"] = f"world-{placement}"
    del spec["retriever"]
    spec["model"] |= {"randomInit": MODEL, "dtype": "bfloat16"}
    spec["sft"] |= {"numSteps": 300}
    spec["sft"]["optimizer"] |= {"lr": 0.0003}
    spec["optimizer"] |= {"lr": 0.00005}
    spec["rollout"] |= {"engine": "sglang", "engineArgs": ENGINE_ARGS | {"cuda_graph_max_bs_decode": 512},
                        "numRollout": rollouts, "batchSize": 32, "nSamplesPerPrompt": 16}  # fmt: skip
    spec["rollout"]["generate"]["search"]["url"] = url
    spec["trainer"] |= {"gpusPerReplica": 1, "useDynamicBatchSize": True, "maxTokensPerGpu": 65536}
    spec["placement"] = {"type": placement}
    spec["rollout"]["gpusPerEngine"] = 1
    if placement == "async":
        spec["placement"]["maxStaleness"] = 1
        spec["algorithm"]["tis"] = {"enabled": True}
    spec["evaluation"] |= {"withoutRetriever": False, "interval": 10}
    spec["checkpoint"] = {"saveInterval": 0, "sftSaveInterval": 0, "saveHf": False}
    spec["tracking"] = {"logCompletions": 2, "metricsPort": 0}
    return manifest


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rollouts", type=int, default=25)
    parser.add_argument("--placement", default="colocated", choices=["colocated", "disaggregated", "async"])
    parser.add_argument("--limit", type=float, default=270.0)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="learns-"))
    from rljob_trainer.quickstart.world import prepare

    prepare(directory)
    manifest = directory / "job.json"
    manifest.write_text(json.dumps(job(options.placement, options.rollouts, serve(directory / "world/corpus.jsonl"))))
    out = Path(os.environ.get("OUT", directory)) / "sgl"
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "rljob_trainer.driver", "--job", str(manifest), "--dir",
               str(directory), "--attempt", "1", "--incarnation", "0001-proof", "--local", "--quiet"]  # fmt: skip
    start = time.monotonic()
    with (out / f"learns-{options.placement}.log").open("w") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=options.limit, check=False)
            emit("exit code", code.returncode)
        except subprocess.TimeoutExpired:
            emit("stopped at the limit", options.limit, "s")
    emit("wall clock", round(time.monotonic() - start, 1), "s")
    tell(directory / "attempts" / "0001-proof" / "metrics.jsonl", options.placement)
    return 0


def tell(metrics: Path, placement: str) -> None:
    """What the run's own metrics say."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    sft = [line for line in lines if line["kind"] == "sft"]
    if sft:
        emit("SFT loss, first and last", [round(sft[0]["loss"], 3), round(sft[-1]["loss"], 3), len(sft)])
        emit("SFT wall clock", round(sft[-1]["time"] - sft[0]["time"], 1), "s")
    curve = {line["name"]: round(line["score"], 4) for line in lines if line["kind"] == "evaluation"}
    emit(f"held-out EM, {placement}", curve)
    if curve:
        emit(f"held-out EM at the end, {placement}", list(curve.values())[-1], "", 0.9)
    rl = [line for line in lines if line["kind"] == "rl"]
    if rl:
        emit("rollouts", len(rl))
        emit("reward", [round(line["reward"], 3) for line in rl])
        steady = rl[2:] or rl
        total = sum(line["seconds/total"] - line["seconds/evaluate"] for line in steady)
        phases = ("generate", "reward", "train", "sync", "commit", "idle")
        emit("share of time", {p: round(sum(line[f"seconds/{p}"] for line in steady) / total, 3) for p in phases})
        emit("seconds per rollout", round(total / len(steady), 3), "s")
        emit("sync per rollout", round(sum(line["seconds/sync"] for line in steady) / len(steady), 3), "s")
        emit("generated tokens/s", round(float(np.mean([line["tokens_per_second"] for line in steady]))))
        for key in ("mismatch_kl", "rollout_kl", "tis_mean", "staleness_max", "grad_norm", "kl"):
            if key in rl[-1]:
                emit(key, [round(line[key], 4) for line in rl[-5:]])


if __name__ == "__main__":
    raise SystemExit(main())
