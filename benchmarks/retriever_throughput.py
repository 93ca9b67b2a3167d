"""Queries per second of the running retriever ÷ those of its bare encoder and index, side by side in one run.

A random encoder of e5-base's shape (12 layers, width 768), a random Flat index of 100,000 × 768, 64 clients that each
wait for their answer before the next query. The bare side encodes and searches the same queries in batches of 64, the
best case for it. The two take turns, so that a machine's slower moments hit both.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx
import numpy as np
from rljob_api.manifest.load import load
from rljob_api.v1alpha1.retriever import RetrieverSpec
from rljob_trainer.retriever.build import write_header
from rljob_trainer.retriever.e5 import E5Encoder
from rljob_trainer.retriever.index import FlatIndex

PASSAGES, WIDTH, LAYERS = 100_000, 768, 12
CLIENTS, TOPK = 64, 3
ROUNDS, QUERIES_PER_ROUND = 3, 128
GOAL = 0.5
START_SECONDS = 300.0
WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "bdfgklmnprst"]


def make_encoder(folder: Path) -> None:
    """A random BERT of e5-base's shape, with a small vocabulary (its size costs nothing at inference)."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "passage", ":", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=WIDTH, num_hidden_layers=LAYERS)
    BertModel(config).save_pretrained(folder)


def make_index(directory: Path) -> None:
    """Random unit vectors and a corpus of as many lines; no manifest, as with a downloaded index."""
    rng = np.random.default_rng(0)
    with (directory / "random.index").open("wb") as file:
        write_header(file, PASSAGES, WIDTH)
        for _ in range(10):
            vectors = rng.standard_normal((PASSAGES // 10, WIDTH), dtype=np.float32)
            file.write((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tobytes())
    with (directory / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number in range(PASSAGES):
            file.write(json.dumps({"id": str(number), "contents": f'"Title {number}"\n' + "some text " * 60}) + "\n")


def make_job(directory: Path) -> Path:
    job = {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "benchmark"},
        "spec": {
            "model": {"path": "unused"},
            "retriever": {
                "corpus": "corpus.jsonl",
                "index": {"path": "random.index", "build": "Never"},
                "encoder": {"type": "e5", "path": "encoder"},
            },
        },
    }
    path = directory / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def make_queries(rng: Random) -> list[str]:
    """Different questions of 6 to 14 words: the service's cache of answers never helps."""
    return [" ".join(rng.choices(WORDS, k=rng.randint(6, 14))) for _ in range(QUERIES_PER_ROUND)]


@contextmanager
def service(job: Path, directory: Path) -> Iterator[str]:
    port_file = directory / "port"
    command = [sys.executable, "-m", "rljob_trainer.retriever", "--job", str(job), "--dir", str(directory)]
    process = subprocess.Popen([*command, "--port", "0", "--port-file", str(port_file)])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (port_file.exists() and is_ready(f"http://127.0.0.1:{port_file.read_text().strip()}")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the retriever did not become ready")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        process.terminate()
        process.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


async def ask_service(url: str, queries: list[str]) -> float:
    """Seconds until 64 clients have asked all queries, one each at a time."""
    waiting = iter(queries)

    async def ask(client: httpx.AsyncClient) -> None:
        for query in waiting:
            answer = await client.post(f"{url}/retrieve", json={"queries": [query], "topk": TOPK})
            answer.raise_for_status()
            assert len(answer.json()["result"][0]) == TOPK

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=CLIENTS)) as client:
        started = time.perf_counter()
        await asyncio.gather(*(ask(client) for _ in range(CLIENTS)))
        return time.perf_counter() - started


def ask_bare(encoder: E5Encoder, index: FlatIndex, queries: list[str]) -> float:
    """Seconds to encode and search all queries, 64 at a time."""
    started = time.perf_counter()
    for start in range(0, len(queries), CLIENTS):
        _, rows = index.search(encoder.encode_queries(queries[start : start + CLIENTS]), TOPK)
        assert rows.shape[1] == TOPK
    return time.perf_counter() - started


def main() -> None:
    # One compute thread on either side: two pools that spin on the same cores would measure the scheduler.
    os.environ["OMP_NUM_THREADS"] = "1"
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rljob-benchmark-") as folder:
        directory = Path(folder)
        make_encoder(directory / "encoder")
        make_index(directory)
        job = make_job(directory)
        spec = load(job).spec.retriever
        assert isinstance(spec, RetrieverSpec)
        encoder, index = E5Encoder(spec.encoder, folder), FlatIndex(directory / "random.index")
        rng = Random(0)
        with service(job, directory) as url:
            warm = make_queries(rng)[:CLIENTS]
            ask_bare(encoder, index, warm)
            asyncio.run(ask_service(url, warm))
            bare, served = [], []
            for _ in range(ROUNDS):
                bare.append(QUERIES_PER_ROUND / ask_bare(encoder, index, make_queries(rng)))
                served.append(QUERIES_PER_ROUND / asyncio.run(ask_service(url, make_queries(rng))))
                print(f"bare {bare[-1]:.1f}, service {served[-1]:.1f} queries/s", file=sys.stderr, flush=True)
    value = statistics.median(s / b for s, b in zip(served, bare, strict=True))
    line = {
        "name": "retriever_queries_vs_bare",
        "value": round(value, 3),
        "unit": "ratio",
        "goal": GOAL,
        "met": value >= GOAL,
        "queries_per_second": round(statistics.median(served), 1),
        "bare_queries_per_second": round(statistics.median(bare), 1),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
