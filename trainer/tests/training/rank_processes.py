"""Runs a script of training steps on ranks that are processes."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from trainer.tests.training import rank_process
from trainer.tests.training.tiny import job
from trainer.tests.warm import COLD, WarmProcess

SCRIPT = Path(rank_process.__file__)
ROOT = SCRIPT.parents[3]


def run(
    job_dir: Path, world: int, steps: list[list[Any]], manifest: dict[str, Any] | None = None, *, cold: bool = COLD
) -> dict[str, Any]:
    """Run the steps (see `rank_process`) on `world` ranks; what rank 0 printed. `cold`: in fresh interpreters."""
    script = json.dumps({"job": manifest or job(), "steps": steps})
    name = uuid.uuid4().hex
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trainer")]),
    }
    processes: list[Any] = []
    try:
        for rank in range(world):
            arguments = [str(rank), str(world), str(job_dir / f"port-{name}"), str(job_dir), script]
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), *arguments],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
                if cold
                else WarmProcess(rank_process.main, arguments, env=environment, output=job_dir / f"rank-{rank}-{name}")
            )
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, (_, errors)) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank}: {errors}"
    result: dict[str, Any] = json.loads(outputs[0][0].splitlines()[-1])
    return result
