"""The quickstart's world learnt on GPUs: a model of more than 100M parameters and SGLang, by the product's driver.

`python -m benchmarks.gpu.learns [--backend megatron] [--placement async] [--trainer-gpus 2 --parallelism JSON]`. The
retriever is a plain one over the same hashed encoder, so that the proof needs no FAISS. `--then-evaluate N`: a job with
`mode: Evaluate` afterwards, on the exported model, by one engine over N GPUs; its score must be that of the run's end.
`--then-generate N`: one with `mode: Generate`. `--partial`: responses cut off and continued, twice as many prompts as
are trained on. `--offload`: the trainer is in host memory while the engine generates (colocated).
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


def job(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """The quickstart's manifest, larger and on GPUs."""
    placement, gpus = options.placement, options.trainer_gpus
    manifest: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    spec = manifest["spec"]
    manifest["metadata"]["name"] = f"world-{placement}"
    del spec["retriever"]
    spec["model"] |= {"randomInit": MODEL, "dtype": "bfloat16"}
    spec["sft"] |= {"numSteps": 300}
    spec["sft"]["optimizer"] |= {"lr": 0.0003}
    spec["optimizer"] |= {"lr": 0.00005}
    arguments = ENGINE_ARGS | {"cuda_graph_max_bs_decode": 512}
    if options.kv_tokens:
        arguments |= {"max_total_tokens": options.kv_tokens}
    spec["rollout"] |= {"engine": "sglang", "engineArgs": arguments,
                        "numRollout": options.rollouts, "batchSize": 32, "nSamplesPerPrompt": 16}  # fmt: skip
    spec["rollout"]["generate"]["search"]["url"] = url
    spec["trainer"] |= {"backend": options.backend, "gpusPerReplica": gpus, "useDynamicBatchSize": True,
                        "maxTokensPerGpu": options.max_tokens}  # fmt: skip
    if options.parallelism:
        spec["trainer"]["parallelism"] = options.parallelism
    if placement == "colocated":
        spec["rollout"]["replicas"] = gpus // options.engine_gpus
    spec["placement"] = {"type": placement, "offloadTrainer": options.offload}
    spec["rollout"] |= {"gpusPerEngine": options.engine_gpus, "weightSync": options.weight_sync}
    if options.partial:
        spec["rollout"] |= {"overSamplingBatchSize": 64, "partialRollout": True, "partialRolloutTokens": 8}
    if placement == "async":
        spec["placement"]["maxStaleness"] = options.staleness
        spec["algorithm"]["tis"] = {"enabled": True}
    spec["evaluation"] |= {"withoutRetriever": False, "interval": options.evaluate_every}
    spec["checkpoint"] = {
        "saveInterval": options.save_every,
        "sftSaveInterval": 0,
        "saveHf": options.then_evaluate + options.then_generate > 0,
    }
    spec["tracking"] = {"logCompletions": 2, "metricsPort": 0}
    return manifest


def evaluation(trained: dict[str, Any], model: Path, gpus: int) -> dict[str, Any]:
    """The same held-out set, scored by one engine over `gpus` GPUs that loads the exported model itself."""
    spec = trained["spec"]
    kept = {key: spec[key] for key in ("seed", "reward", "evaluation", "tracking")}
    rollout = spec["rollout"] | {"replicas": 1, "gpusPerEngine": gpus}
    model_spec = {"path": str(model), "dtype": "bfloat16"}
    return trained | {
        "metadata": {"name": "world-evaluated"},
        "spec": kept | {"mode": "Evaluate", "model": model_spec, "rollout": rollout},
    }


def generation(trained: dict[str, Any], model: Path, gpus: int) -> dict[str, Any]:
    """Two rollouts' prompts answered and scored by the exported model, with no trainer."""
    manifest = evaluation(trained, model, gpus)
    spec = manifest["spec"]
    del spec["evaluation"]
    rollout = spec["rollout"] | {"numRollout": 2}
    return manifest | {"spec": spec | {"mode": "Generate", "data": trained["spec"]["data"], "rollout": rollout}}


def drive(manifest: dict[str, Any], directory: Path, incarnation: str, log: Path, limit: float) -> None:
    """One attempt of the driver, ended at the limit."""
    path = directory / f"{incarnation}.json"
    path.write_text(json.dumps(manifest))
    command = [sys.executable, "-W", "ignore", "-m", "rljob_trainer.driver", "--job", str(path), "--dir",
               str(directory), "--attempt", incarnation[:4].lstrip("0"), "--incarnation", incarnation, "--local",
               "--quiet"]  # fmt: skip
    start = time.monotonic()
    with log.open("w") as output:
        try:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=limit, check=False)
            emit("exit code", code.returncode)
        except subprocess.TimeoutExpired:
            emit("stopped at the limit", limit, "s")
    emit("wall clock", round(time.monotonic() - start, 1), "s")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rollouts", type=int, default=25)
    parser.add_argument("--backend", default="fsdp", choices=["fsdp", "megatron"])
    parser.add_argument("--placement", default="colocated", choices=["colocated", "disaggregated", "async"])
    parser.add_argument("--staleness", type=int, default=1, help="placement.maxStaleness of async")
    parser.add_argument("--trainer-gpus", type=int, default=1)
    parser.add_argument("--parallelism", type=json.loads, default={}, help="trainer.parallelism as JSON")
    parser.add_argument("--engine-gpus", type=int, default=1, help="GPUs of each engine")
    parser.add_argument("--weight-sync", default="auto", choices=["auto", "disk"])
    parser.add_argument("--partial", action="store_true", help="partial rollouts")
    parser.add_argument("--offload", action="store_true", help="the trainer is in host memory meanwhile")
    parser.add_argument("--save-every", type=int, default=0, help="rollouts between commits, 0: none but the last")
    parser.add_argument("--evaluate-every", type=int, default=10)
    parser.add_argument("--then-evaluate", type=int, default=0, metavar="GPUS")
    parser.add_argument("--then-generate", type=int, default=0, metavar="GPUS")
    parser.add_argument("--limit", type=float, default=270.0, help="seconds of each job")
    parser.add_argument("--max-tokens", type=int, default=65536, help="tokens of a forward pass, for each GPU")
    parser.add_argument(
        "--kv-tokens", type=int, default=0, help="size of the KV cache, for several runs on the same GPUs"
    )
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="learns-"))
    from rljob_trainer.quickstart.world import prepare

    prepare(directory)
    cut = ", ".join(f"{key} {value}" for key, value in options.parallelism.items()) or "not cut"
    name = f"{options.placement}, {options.backend}, {options.trainer_gpus} GPUs of the trainer, {cut}"
    emit("run", name)
    manifest = job(options, serve(directory / "world/corpus.jsonl"))
    out = Path(os.environ.get("OUT", directory))
    log = out / f"learns-{options.placement}-{options.backend}-{options.trainer_gpus}.log"
    drive(manifest, directory, "0001-proof", log, options.limit)
    tell(directory / "attempts" / "0001-proof" / "metrics.jsonl", name)
    for mode, change, count in (
        ("Evaluate", evaluation, options.then_evaluate),
        ("Generate", generation, options.then_generate),
    ):
        if not count:
            continue
        other = Path(tempfile.mkdtemp(prefix="learns-"))
        (other / "world").symlink_to(directory / "world")
        emit("run", f"mode {mode}, one engine over {count} GPUs")
        again = change(manifest, directory / "attempts" / "0001-proof" / "model", count)
        drive(again, other, "0001-proof", log.with_suffix(f".{mode.lower()}.log"), options.limit)
        tell(other / "attempts" / "0001-proof" / "metrics.jsonl", f"mode {mode}")
    return 0


def tell(metrics: Path, name: str) -> None:
    """What the run's own metrics say."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    sft = [line for line in lines if line["kind"] == "sft"]
    if sft:
        emit("SFT loss, first and last", [round(sft[0]["loss"], 3), round(sft[-1]["loss"], 3), len(sft)])
        emit("SFT wall clock", round(sft[-1]["time"] - sft[0]["time"], 1), "s")
    curve = {line["name"]: round(line["score"], 4) for line in lines if line["kind"] == "evaluation"}
    emit(f"held-out EM, {name}", curve)
    if curve:
        emit(f"held-out EM at the end, {name}", list(curve.values())[-1], "", 0.9)
    made = [line for line in lines if line["kind"] == "generate"]
    if made:
        emit(f"reward of generated samples, {name}", [round(line["reward"], 4) for line in made])
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
        for key in ("mismatch_kl", "rollout_kl", "tis_mean", "staleness_max", "grad_norm", "kl",
                    "sampling/groups_left_unfinished", "sampling/stale_tokens"):  # fmt: skip
            if key in rl[-1]:
                emit(key, [round(line[key], 4) for line in rl[-5:]])


if __name__ == "__main__":
    raise SystemExit(main())
