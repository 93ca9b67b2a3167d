"""Tests of Triton kernels: compiled where there is a GPU, else by Triton's interpreter, in a process of its own, since
Triton chooses it when it is imported."""

import os
import subprocess
import sys

import pytest
import torch

INTERPRET = "TRITON_INTERPRET"
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
needs_triton = pytest.mark.skipif(not (GPU or INTERPRET in os.environ), reason="the interpreter's process runs it")
starts_interpreter = pytest.mark.skipif(GPU or INTERPRET in os.environ, reason="compiled here, or interpreted already")


def check_interpreted(file: str, passing: int) -> None:
    """Runs a file's tests by the interpreter, of which so many have to pass and none may fail."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=",
               file]  # fmt: skip
    done = subprocess.run(
        command, env=environment | {INTERPRET: "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    assert f"{passing} passed" in done.stdout, done.stdout
