"""Split an export of the lock file for the CPU image: what is common, torch as PyPI has it, and its bare version.

Run as `requirements.py EXPORT FOLDER`. Left out altogether are the CUDA libraries (but for the two small ones that
torch loads on any machine) and triton, which compiles GPU kernels.
"""

import re
import sys
from pathlib import Path

WITH_TORCH = {"torch", "nvidia-cuda-runtime", "nvidia-cuda-cupti"}
LEFT_OUT = re.compile(r"nvidia-.*|cuda-.*|triton")


def split(text: str) -> dict[str, str]:
    """File name -> text, of requirements as `uv export` writes them (an entry goes on after a backslash)."""
    common: list[str] = []
    torch: list[str] = []
    version = ""
    for entry in re.split(r"\n(?=\S)", text):
        name = re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry)
        if name is None:
            continue  # the comment at the top
        if name[1] in WITH_TORCH:
            torch.append(entry)
            version = name[0] if name[1] == "torch" else version
        elif not LEFT_OUT.fullmatch(name[1]):
            common.append(entry)
    if not version:
        raise SystemExit("the export holds no torch")
    return {
        "common.txt": "\n".join(common) + "\n",
        "torch.txt": "\n".join(torch) + "\n",
        "torch-version.txt": version + "\n",
    }


if __name__ == "__main__":
    export, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in split(export.read_text()).items():
        (folder / name).write_text(text)
