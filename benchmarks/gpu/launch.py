"""Runs the ranks of a job as processes, one GPU each, within a time limit, and gives what rank 0 found."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


class RanksFailedError(RuntimeError):
    """A rank ended badly or all took too long; the message holds the end of its output."""


def run_ranks(
    job: dict[str, Any], steps: list[list[Any]], *, world: int = 1, first_gpu: int = 0, limit: float = 120.0
) -> list[Any]:
    """Results of the steps (see `rank_worker`). Ranks take GPUs first_gpu, first_gpu + 1, …"""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.json"
        trainer = job["spec"]["trainer"]
        gpus = {"gpusPerReplica": world} if trainer.get("gpusPerReplica") != 0 else {"ranksPerReplica": world}
        job = job | {"spec": job["spec"] | {"trainer": gpus | trainer}}
        script.write_text(json.dumps({"job": job, "world": world, "job_dir": folder, "steps": steps}))
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(world)]
        workers = []
        for rank, log in enumerate(logs):
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(first_gpu + rank)}
            with log.open("w") as output:
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.gpu.rank_worker", str(script), str(rank)],
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                    )
                )
        deadline = time.monotonic() + limit
        try:
            while any(worker.poll() is None for worker in workers):
                bad = next((rank for rank, worker in enumerate(workers) if worker.poll()), None)
                if bad is not None or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        finally:
            late = [rank for rank, worker in enumerate(workers) if worker.poll() is None]
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
        failed = next((rank for rank, worker in enumerate(workers) if worker.returncode and rank not in late), None)
        if failed is None and late:
            failed = late[0]
        if failed is not None:
            why = "did not end in time" if failed in late else f"exit code {workers[failed].returncode}"
            raise RanksFailedError(f"rank {failed}: {why}\n{logs[failed].read_text()[-3500:]}")
        result: list[Any] = json.loads(script.with_suffix(".out.json").read_text())
        return result
