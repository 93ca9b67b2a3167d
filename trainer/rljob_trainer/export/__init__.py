"""Weights in Hugging Face's layout and in Megatron's, and the way between them.

Nothing here imports Megatron: `architecture`, `layout` and `mapping` are pure functions on names and whole tensors,
`torch_dist` and `hf_folder` read and write the two formats, `run` puts them together.
"""
