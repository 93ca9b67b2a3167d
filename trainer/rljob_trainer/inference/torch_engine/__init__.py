"""The embedded engine: batched inference of Llama-like transformers models on CPU or GPU, in plain PyTorch."""

from rljob_trainer.inference.torch_engine.engine import TorchEngine, TorchEngineOptions, TorchSession

__all__ = ["TorchEngine", "TorchEngineOptions", "TorchSession"]
