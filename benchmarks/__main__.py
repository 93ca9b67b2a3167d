"""Run the benchmarks one after another and keep their JSON lines under `benchmarks/results/`.

A benchmark is a module here with JSON lines `{"name", "value", "unit", "goal", "met"}` on standard output and
everything else on standard error. Speeds are ratios measured side by side in one run.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import _results

HERE = Path(__file__).parent
LIMIT_SECONDS = 3600


def modules() -> list[str]:
    """The benchmarks, in alphabetical order."""
    return sorted(file.stem for file in HERE.glob("*.py") if not file.stem.startswith("_"))


def run(module: str) -> list[dict[str, object]]:
    """The lines that one benchmark printed. Raises RuntimeError when it failed."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}"],
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"benchmark {module} failed with exit code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main(arguments: list[str]) -> int:
    """Run the benchmarks named, or all. Exit code 1 when one fails or a goal is missed."""
    names = arguments or modules()
    unknown = sorted(set(names) - set(modules()))
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(modules())}", file=sys.stderr)
        return 2
    about, target = _results.about(), _results.target()
    good = True
    with target.open("a", encoding="utf-8") as kept:
        for name in names:
            print(f"benchmark {name}", file=sys.stderr, flush=True)
            try:
                lines = run(name)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(error, file=sys.stderr)
                good = False
                continue
            for line in lines:
                good = good and line.get("met") is not False
                print(json.dumps(line), flush=True)
                kept.write(json.dumps(line | about) + "\n")
    print(f"kept in {target.relative_to(HERE.parent)}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
