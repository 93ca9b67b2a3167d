"""The small random models of the engines' tests."""

from trainer.tests.inference.conftest import model, model_of, tokenizer  # noqa: F401 - fixtures
