"""Proofs that need GPUs. Each module runs by itself and prints JSON lines like the benchmarks beside this folder."""
