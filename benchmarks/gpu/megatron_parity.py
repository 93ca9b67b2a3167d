"""Is the megatron backend right? Against Hugging Face, the fsdp backend on CPU, and itself cut over GPUs.

`--gpus 1`: log-probabilities of tiny random Qwen2, Qwen3, Llama and Qwen3-MoE models against transformers (float32);
five steps against fsdp in float32; recomputation, packing, a commit taken up again, an export, a converted checkpoint.
Where TransformerEngine is installed all of that is with its layers, and those are compared with megatron-core's own.
`--gpus 2`: TP, TP with SP, PP, CP, DP and EP on two GPUs against one, over five steps.
`--gpus 4`: two of these ways at once, on four GPUs against one.

Every check is a group of processes of its own, with a time limit; one that fails is reported and the others go on.
Goals: loss within 1e-2 and gradient norm within 3e-2, relative; log-probabilities within 0.02 in the mean.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import tiny_models
from benchmarks.gpu.launch import run_ranks

KINDS = ("qwen2", "qwen3", "llama", "qwen3_moe")
ROUNDED = ("qwen2", "qwen3_moe")
"""Models whose own sensitivity to rounding is given beside the figures."""
STEPS: list[list[Any]] = [
    ["load", None], ["logprobs", 9, 4], ["sft", 1, 12], ["sft", 2, 12], ["begin_rl"], ["rl", 3, 12], ["rl", 4, 12],
    ["rl", 5, 12],
]  # fmt: skip
FUSED = importlib.util.find_spec("transformer_engine") is not None
LOCAL = {"transformer_impl": "local"}
LOSS, NORM, LOGPROB = 1e-2, 3e-2, 0.02
LIMIT = 150.0
"""Seconds that the ranks of a check may take; compiling the kernels is most of it."""
FIRST_LOGPROBS = 0
"""Place of the log-probabilities among the results of STEPS; metrics of the five steps follow."""

HF_SCRIPT = """
import json, sys, torch, transformers
from benchmarks.gpu import tiny_models
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).cuda().eval()
torch.backends.cuda.matmul.allow_tf32 = False
out = []
for sample in tiny_models.samples(9, 4):
    ids = torch.tensor([sample.prompt_ids + sample.response_ids]).cuda()
    with torch.no_grad():
        logp = torch.log_softmax(model(ids).logits[0, :-1].float() / 0.8, -1)
    chosen = logp.gather(1, ids[0, 1:, None])[:, 0][len(sample.prompt_ids) - 1:].tolist()
    out.append([value if trained else 0.0 for value, trained in zip(chosen, sample.loss_mask)])
print("RESULT" + json.dumps(out))
"""

Line = dict[str, Any]
Check = Callable[[], list[Line]]


def difference(a: list[list[float]], b: list[list[float]]) -> tuple[float, float]:
    """Mean and largest absolute difference of trained tokens' log-probabilities."""
    pairs = [(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True) if x or y]
    gaps = [abs(x - y) for x, y in pairs]
    return sum(gaps) / len(gaps), max(gaps)


def deviation(mine: list[dict[str, float]], reference: list[dict[str, float]], key: str, floor: float) -> float:
    """Largest relative difference over the steps; values below `floor` are compared to it (losses of reinforcement
    learning pass through zero)."""
    return max(abs(a[key] - b[key]) / max(abs(b[key]), floor) for a, b in zip(mine, reference, strict=True))


def logprob_line(name: str, mine: list[list[float]], reference: list[list[float]]) -> Line:
    """Log-probabilities against a reference."""
    mean, top = difference(mine, reference)
    return {"name": name, "value": mean, "unit": "mean |Δ|", "goal": LOGPROB, "met": mean <= LOGPROB, "max": top}


def lines_of(name: str, mine: list[dict[str, float]], reference: list[dict[str, float]]) -> list[Line]:
    """Loss and gradient norm against a reference."""
    loss = deviation(mine, reference, "loss", 0.1)
    norm = deviation(mine, reference, "grad_norm", 1e-3)
    steps = [round(deviation([a], [b], "grad_norm", 1e-3), 5) for a, b in zip(mine, reference, strict=True)]
    return [
        {"name": f"{name}.loss", "value": loss, "unit": "relative", "goal": LOSS, "met": loss <= LOSS},
        {"name": f"{name}.grad_norm", "value": norm, "unit": "relative", "goal": NORM, "met": norm <= NORM,
         "by_step": steps},
    ]  # fmt: skip


class Proof:
    """Models in a folder, and runs whose results are kept, so that several checks can share one."""

    def __init__(self, folder: Path, lr: float) -> None:
        self.job = partial(tiny_models.job, lr=lr)
        self.models = {kind: tiny_models.write_model(kind, folder) for kind in KINDS}
        self.kept: dict[str, list[Any]] = {}

    def run(self, name: str, job: dict[str, Any], steps: list[list[Any]], **options: Any) -> list[Any]:
        if name not in self.kept:
            self.kept[name] = run_ranks(job, steps, **options)
        return self.kept[name]

    def one(self, kind: str, gpu: int = 0) -> list[Any]:
        """Megatron on one GPU."""
        return self.run(f"{kind}.one", self.job(self.models[kind]), STEPS, first_gpu=gpu, limit=LIMIT)

    def first(self, kind: str) -> list[Line]:
        """Only run it: other checks compare with it."""
        self.one(kind)
        return []

    def against_hf(self, kind: str) -> list[Line]:
        done = subprocess.run(
            [sys.executable, "-c", HF_SCRIPT, str(self.models[kind])],
            capture_output=True, text=True, timeout=90, check=False, env=os.environ,
        )  # fmt: skip
        if "RESULT" not in done.stdout:
            raise RuntimeError(done.stderr[-2000:])
        reference = json.loads(done.stdout.split("RESULT")[1])
        return [logprob_line(f"{kind}.logprob_vs_hf", self.one(kind)[FIRST_LOGPROBS], reference)]

    def against_fsdp(self, kind: str) -> list[Line]:
        job = self.job(self.models[kind], backend="fsdp", gpusPerReplica=0, threadsPerRank=2)
        job["spec"]["model"]["dtype"] = "float32"
        reference = self.run(f"{kind}.fsdp", job, STEPS, limit=LIMIT)
        mine = self.one(kind)
        line = logprob_line(f"{kind}.logprob_vs_fsdp", mine[FIRST_LOGPROBS], reference[FIRST_LOGPROBS])
        return [line, *lines_of(f"{kind}.vs_fsdp_cpu", mine[1:], reference[1:])]

    def recompute(self, name: str, recompute: dict[str, Any]) -> list[Line]:
        job = self.job(self.models["qwen2"], recompute=recompute)
        return lines_of(f"recompute.{name}", self.run(f"re.{name}", job, STEPS)[1:], self.one("qwen2")[1:])

    def dynamic(self) -> list[Line]:
        job = self.job(self.models["qwen2"], useDynamicBatchSize=True, maxTokensPerGpu=700)
        return lines_of("dynamic_batches", self.run("dynamic", job, STEPS)[1:], self.one("qwen2")[1:])

    def local(self, kind: str) -> list[Line]:
        """TransformerEngine's layers against megatron-core's own."""
        name = f"transformer_engine_vs_local.{kind}"
        local = self.run(f"{kind}.local", self.job(self.models[kind], megatronArgs=LOCAL), STEPS, limit=LIMIT)
        mine = self.one(kind)
        line = logprob_line(f"{name}.logprob", mine[FIRST_LOGPROBS], local[FIRST_LOGPROBS])
        return [line, *lines_of(name, mine[1:], local[1:])]

    def packing(self) -> list[Line]:
        job = self.job(self.models["qwen3"])
        packed, unpacked = (
            run_ranks(job, [["load", None], [action, 1, 6], [action, 2, 6]]) for action in ("packed", "unpacked")
        )
        return lines_of("packed_documents", packed, unpacked)

    def commit(self, folder: Path) -> list[Line]:
        job = self.job(self.models["qwen2"])
        whole = run_ranks(job, [*STEPS, ["save", str(folder / "commit")], ["rl", 6, 12], ["digest"],
                                ["export", str(folder / "export")]])  # fmt: skip
        again = run_ranks(job, [["load", str(folder / "commit")], ["rl", 6, 12], ["digest"]])
        lines = lines_of("resumed", again[:1], whole[-2:-1])
        if FUSED:
            local = run_ranks(
                self.job(self.models["qwen2"], megatronArgs=LOCAL), [["load", str(folder / "commit")], ["rl", 6, 12]]
            )
            lines += lines_of("resumed_with_local_layers", local, whole[-2:-1])
        same = again[-1] == whole[-1]
        exported = self.job(folder / "export")
        first = run_ranks(exported, [["load", None], ["digest"]])
        return [
            *lines,
            {"name": "resumed.bits", "value": float(same), "unit": "bool", "goal": 1, "met": same},
            {"name": "export.bits", "value": float(first[-1] == whole[-1]), "unit": "bool", "goal": 1,
             "met": first[-1] == whole[-1]},
        ]  # fmt: skip

    def converted(self, kind: str, folder: Path) -> list[Line]:
        from rljob_trainer.export.run import hf_to_torch_dist

        hf_to_torch_dist(self.models[kind], folder / f"{kind}-dist")
        job = self.job(self.models[kind])
        job["spec"]["checkpoint"] = {"load": str(folder / f"{kind}-dist")}
        found = run_ranks(job, [["load", None], ["logprobs", 9, 4]])
        _, top = difference(found[0], self.one(kind)[FIRST_LOGPROBS])
        return [{"name": f"{kind}.converted_vs_hf_folder", "value": top, "unit": "max |Δ|", "goal": 0.0,
                 "met": top == 0.0}]  # fmt: skip

    def rounding(self, name: str, kind: str) -> list[Line]:
        """One GPU against itself with other forward passes: what rounding alone makes of the same steps."""
        job = self.job(self.models[kind], microBatchSize=3)
        return lines_of(name, self.run(name, job, STEPS, limit=LIMIT)[1:], self.one(kind)[1:])

    def spread(self, name: str, kind: str, parallelism: dict[str, Any], world: int) -> list[Line]:
        job = self.job(self.models[kind], parallelism=parallelism)
        steps = [*STEPS, ["digest"]]
        mine = self.run(name, job, steps, world=world, limit=LIMIT)
        reference = self.one(kind)
        line = logprob_line(f"{name}.logprob_vs_one_gpu", mine[FIRST_LOGPROBS], reference[FIRST_LOGPROBS])
        return [line, *lines_of(name, mine[1:6], reference[1:6])]


def one_gpu(proof: Proof, folder: Path) -> dict[str, Check]:
    """The checks that one GPU can do, by name."""

    def references(kind: str) -> list[Line]:
        return [*proof.against_hf(kind), *proof.against_fsdp(kind)]

    ways: dict[str, dict[str, Any]] = {
        "full": {"granularity": "full", "method": "uniform", "numLayers": 2},
        "block": {"granularity": "full", "method": "block", "numLayers": 2},
        "selective": {"granularity": "selective"},
    }
    checks: dict[str, Check] = {f"hf.{kind}": partial(references, kind) for kind in KINDS}
    checks |= {"packing": proof.packing, "commit": partial(proof.commit, folder), "dynamic": proof.dynamic}
    checks |= {f"recompute.{name}": partial(proof.recompute, name, way) for name, way in ways.items()}
    if FUSED:
        checks |= {f"local.{kind}": partial(proof.local, kind) for kind in KINDS}
    return checks | {f"converted.{kind}": partial(proof.converted, kind, folder) for kind in ("qwen2", "qwen3_moe")}


WAYS: dict[int, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    2: (
        ("tp2", "qwen2", {"tensor": 2}),
        ("tp2_sp", "qwen3", {"tensor": 2, "sequence": True}),
        ("pp2", "qwen2", {"pipeline": 2}),
        ("cp2", "llama", {"context": 2}),
        ("dp2", "qwen2", {}),
        ("ep2", "qwen3_moe", {"expert": 2}),
        ("tp2_sp_moe", "qwen3_moe", {"tensor": 2, "sequence": True}),
    ),
    4: (
        ("tp2_sp_cp2", "llama", {"tensor": 2, "sequence": True, "context": 2}),
        ("tp2_pp2", "qwen2", {"tensor": 2, "pipeline": 2}),
        ("pp2_cp2", "qwen3", {"pipeline": 2, "context": 2}),
        ("dp2_tp2", "qwen2", {"tensor": 2}),
        ("ep2_pp2", "qwen3_moe", {"expert": 2, "pipeline": 2}),
        ("ep4", "qwen3_moe", {"expert": 4}),
    ),
}
"""Ways to cut a model over so many GPUs: a name, the model, `trainer.parallelism`."""


def several_gpus(proof: Proof, gpus: int) -> dict[str, Check]:
    """The checks that so many GPUs can do, by name."""
    checks: dict[str, Check] = {name: partial(proof.spread, name, kind, way, gpus) for name, kind, way in WAYS[gpus]}
    return checks | {f"rounding.{kind}": partial(proof.rounding, f"rounding.{kind}", kind) for kind in ROUNDED}


def needed(checks: Sequence[tuple[str, Check]]) -> set[str]:
    """The models that checks compare with; the parts of which name them."""
    return {kind for _, check in checks for kind in KINDS if kind in getattr(check, "args", ())} or {KINDS[0]}


def main() -> int:
    """Prints a JSON line for every figure; exit code 1 when a goal was missed or a check broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=1, choices=[1, *WAYS])
    parser.add_argument("--only", nargs="*", default=[""], help="run only checks whose name contains one of these")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of the steps")
    parser.add_argument("--jobs", type=int, default=4, help="checks at a time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        proof = Proof(folder, arguments.lr)
        checks = one_gpu(proof, folder) if arguments.gpus == 1 else several_gpus(proof, arguments.gpus)

        def attempt(item: tuple[str, Check]) -> bool:
            name, check = item
            try:
                lines = check()
            except Exception:  # noqa: BLE001 - one broken check must not end the others
                print(f"check {name} broke:\n{traceback.format_exc()[-4500:]}", file=sys.stderr, flush=True)
                print(
                    json.dumps({"name": name, "value": None, "unit": "broken", "goal": None, "met": False}), flush=True
                )
                return False
            for line in lines:
                print(json.dumps(line), flush=True)
            return all(line["met"] for line in lines)

        wanted = [item for item in checks.items() if any(part in item[0] for part in arguments.only)]

        # References first: several checks wait for the same one.
        def reference(kind: str) -> tuple[str, Check]:
            return f"one.{kind}", partial(proof.first, kind)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(attempt, [reference(kind) for kind in KINDS if kind in needed(wanted)]))
            results = list(pool.map(attempt, wanted))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
