"""Training backends: the values of `spec.trainer.backend`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend."""

    name: str
    implementation: str
    """`module:Class` of one rank's part: made with the job, its directory, the rank and the number of ranks."""
    package: str | None = None
    """A package that it needs beside those of the trainer, as it is imported."""
    needs_gpus: bool = False
    """It does not train on CPU."""
    model_parallel: bool = False
    """It splits one copy of the model: `trainer.parallelism` above 1."""
    float32: bool = False
    """It trains in float32 too, not in bfloat16 alone."""
    critic: bool = False
    """It trains a critic beside the policy, for estimators that need values."""
    partial_recompute: bool = False
    """It recomputes parts of layers and groups of layers, not each whole layer alone."""
    offloads_optimizer: bool = False
    """It has `optimizer.offload`."""


_TRAINING = "rljob_trainer.training"
BACKENDS: dict[str, Backend] = {
    entry.name: entry
    for entry in (
        Backend(
            "megatron",
            f"{_TRAINING}.megatron.backend:MegatronBackend",
            package="megatron.core",
            needs_gpus=True,
            model_parallel=True,
            partial_recompute=True,
        ),
        Backend("fsdp", f"{_TRAINING}.fsdp.backend:FsdpBackend", float32=True, critic=True, offloads_optimizer=True),
    )
}
