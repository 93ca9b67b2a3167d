"""The `fsdp` backend: transformers models sharded by FSDP2, on CPU (gloo) or GPU (NCCL)."""
