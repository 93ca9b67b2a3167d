"""One training rank as a process of its own: `python -m benchmarks.gpu.rank_worker SCRIPT.json RANK`.

SCRIPT: {"job", "world", "job_dir", "steps": [[action, …], …]}; see `main`. Rank 0 writes SCRIPT.out.json.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rljob_trainer.weights import weights_digest

from benchmarks.gpu import tiny_models

WAIT_SECONDS = 120.0


def meet(trainer: Any, rank: int, file: Path) -> None:
    """Join the ranks: rank 0 writes down where."""
    if rank == 0:
        host, port = trainer.rendezvous()
        file.with_suffix(".tmp").write_text(f"{host} {port}")
        file.with_suffix(".tmp").replace(file)
    deadline = time.monotonic() + WAIT_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("rank 0 did not open the rendezvous")
        time.sleep(0.05)
    host, port = file.read_text().split()
    trainer.setup(host, int(port))


def main(path: Path, rank: int) -> None:
    """Actions: load DIR|null, begin_rl, sft SEED COUNT, packed SEED COUNT, unpacked SEED COUNT, rl SEED COUNT,
    logprobs SEED COUNT, save DIR, export DIR, digest."""
    from rljob_api.rules.arithmetic import data_parallel_rank, data_parallel_size
    from rljob_trainer.training.rank import TrainerRank

    script = json.loads(path.read_text())
    world = script["world"]
    trainer = TrainerRank(script["job"], script["job_dir"], rank, world)
    meet(trainer, rank, path.with_suffix(".meet"))
    spec = trainer.spec
    shares, mine = data_parallel_size(spec), data_parallel_rank(spec, rank)
    out: list[Any] = []
    made = {"sft": 0, "rl": 0}
    for action, *args in script["steps"]:
        if action == "load":
            trainer.load(args[0])
        elif action == "begin_rl":
            trainer.begin_rl()
        elif action == "save":
            Path(args[0]).mkdir(parents=True, exist_ok=True)
            trainer.save(args[0])
        elif action == "export":
            trainer.export_hf(args[0])
        elif action == "digest":
            out.append(weights_digest(trainer.full_weights()))
        elif action == "logprobs":
            batch = tiny_models.samples(*args)
            out.append(trainer.compute_logprobs(batch))  # Every share the same: all values come back on rank 0.
        elif action == "rl":
            out.append(trainer.rl_step(tiny_models.samples(*args)[mine::shares], made["rl"], 20))
            made["rl"] += 1
        else:
            rows = tiny_models.demonstrations(*args) if action == "sft" else tiny_models.packed(*args)
            rows = tiny_models.unpacked(rows) if action == "unpacked" else rows
            out.append(trainer.sft_step(rows[mine::shares], made["sft"], 20))
            made["sft"] += 1
    trainer.shutdown()
    if rank == 0:
        path.with_suffix(".out.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
