"""The `megatron` backend: a training rank over megatron-core, for GPUs.

Pure parts (`layout`, `packing`, `zigzag`, `options`, `state`, `initial_weights`) import no Megatron and are tested on
any CPU; `backend` puts the rest together. Nothing here is imported unless `spec.trainer.backend` is `megatron`.
"""
