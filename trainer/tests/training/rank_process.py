"""One rank as a process of its own: `rank_process.py RANK WORLD PORT_FILE JOB_DIR SCRIPT`, SCRIPT being JSON.

SCRIPT: {"job": …, "steps": [["sft", seed, count] | ["rl", seed, count] | ["begin_rl"] | ["load", dir | null]
| ["save", dir] | ["export", dir]]}. Rank 0 prints one JSON line: metrics of each step, and the digest at the end.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rljob_trainer.training.rank import TrainerRank
from rljob_trainer.weights import weights_digest

from trainer.tests.training.tiny import demonstrations, samples, with_values


def main(arguments: list[str]) -> None:
    rank, world, port_file, job_dir = int(arguments[0]), int(arguments[1]), Path(arguments[2]), arguments[3]
    script: dict[str, Any] = json.loads(arguments[4])
    trainer = TrainerRank(script["job"], job_dir, rank, world)
    if rank == 0:
        host, port = trainer.rendezvous()
        port_file.with_suffix(".tmp").write_text(f"{host} {port}")
        port_file.with_suffix(".tmp").replace(port_file)
    deadline = time.monotonic() + 240
    while not port_file.exists():
        assert time.monotonic() < deadline, "rank 0 did not open the rendezvous"
        time.sleep(0.05)
    host, port_text = port_file.read_text().split()
    trainer.setup(host, int(port_text))
    metrics, made = [], {"sft": 0, "rl": 0}
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
        else:
            step = args[2] if len(args) > 2 else made[action]
            made[action] = step + 1
            make = demonstrations if action == "sft" else samples
            # Unequal shares: rank 0 gets the larger part.
            batch = make(args[0], args[1])  # type: ignore[operator]
            if action == "rl" and script["job"]["spec"]["algorithm"].get("advantageEstimator") == "gae":
                batch = with_values(batch)
            cut = len(batch) if world == 1 else 2 * len(batch) // 3
            share = batch[:cut] if rank == 0 else batch[cut:]
            metrics.append(getattr(trainer, f"{action}_step")(share, step, 20))
    weights = trainer.full_weights()
    assert bool(weights) is (rank == 0)
    trainer.shutdown()
    if rank == 0:
        print(json.dumps({"metrics": metrics, "digest": weights_digest(weights)}))


if __name__ == "__main__":
    main(sys.argv[1:])
