"""Inference engines: the values of `spec.rollout.engine`."""

from dataclasses import dataclass
from typing import Literal

Transport = Literal["arrays", "ipc", "nccl", "disk"]
"""A way for new weights to an engine.

- `arrays`: whole arrays in host memory, through Ray's object store.
- `ipc`: buckets in the memory of a GPU that engine and rank share.
- `nccl`: buckets that rank 0 broadcasts to the engine's GPUs.
- `disk`: safetensors files in the job's storage.
"""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine. What it is as code: `rljob_trainer.inference.interface.InferenceEngine`."""

    name: str
    build: str
    """`module:function`: `async def f(spec, job_dir, engine_index) -> InferenceEngine`."""
    weights: tuple[Transport, ...] = ("arrays",)
    """The ways in which it takes new weights: `disk` or `arrays` at least, for placements without a faster one."""
    needs_gpus: bool = False
    """It does not run on CPU."""
    tensor_parallel: bool = False
    """One engine may span several GPUs: `rollout.gpusPerEngine` above 1, or a share of a colocated trainer's."""
    sleeps: bool = False
    """With `placement.type: colocated` it leaves its GPUs to the ranks while those train."""

    @property
    def updates_in_place(self) -> bool:
        """Whether it takes weights over while it lives on: what it is asked for meanwhile waits, and goes on after."""
        return self.weights != ("arrays",)


_INFERENCE = "rljob_trainer.inference"
ENGINES: dict[str, Engine] = {
    entry.name: entry
    for entry in (
        Engine("torch", f"{_INFERENCE}.torch_engine.build:build"),
        Engine(
            "sglang",
            f"{_INFERENCE}.sglang.build:build",
            weights=("ipc", "nccl", "disk"),
            needs_gpus=True,
            tensor_parallel=True,
            sleeps=True,
        ),
    )
}
