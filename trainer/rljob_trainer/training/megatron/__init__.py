"""The `megatron` backend: a training rank over megatron-core, for GPUs.

Pure parts (`layout`, `packing`, `zigzag`, `options`, `split`) import no Megatron and are tested on any CPU;
`rank` puts the rest together. Nothing here is imported unless `spec.trainer.backend` is `megatron`.
"""
