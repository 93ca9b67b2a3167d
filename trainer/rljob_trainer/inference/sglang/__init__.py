"""SGLang as an engine: token ids in and out with log-probs, weights that arrive while it runs, memory on loan.

Importing this package imports neither SGLang nor CUDA.
"""
