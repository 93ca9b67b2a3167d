"""The learning curves of `benchmarks.gpu.learns`, as kept under benchmarks/results/gpu, drawn for docs/gpu.md.

`python -m benchmarks.gpu.curves > docs/images/gpu-learns.svg`
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rljob_trainer.report.svg import Line, line_chart

from charts.dashboards.picture import COLOURS

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
SHOWN = {
    "fsdp, colocated, 1 GPU": ("2026-11-20", "--rollouts 25"),
    "megatron, colocated, 1 GPU": ("2026-11-25", "--backend megatron --placement colocated --rollouts 12"),
    "megatron, disaggregated, 1 + 1": ("2026-11-25", "--backend megatron --placement disaggregated --rollouts 12"),
    "fsdp, async, 1 + 1": ("2026-11-25", "--backend fsdp --placement async --rollouts 12"),
    "fsdp, disaggregated, 1 + 2": ("2026-11-26", "--placement disaggregated --engine-gpus 2 --rollouts 14"),
    "fsdp, one engine over both GPUs": ("2026-11-26", "--trainer-gpus 2 --engine-gpus 2 --rollouts 12"),
}
"""The run's name, its day and the beginning of its options."""
WIDTH, HEIGHT = 920, 500
STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#667085;font-size:11px}.grid{stroke:#e4e7ec}"
    ".series{fill:none;stroke-width:2}"
) + "".join(f".series.s{i}{{stroke:{c}}}.dot.s{i}{{fill:{c}}}" for i, c in enumerate(COLOURS))


def rewards(day: str, options: str) -> list[float]:
    """Mean reward of each rollout of the run whose command has these options. Raises LookupError without one."""
    command = f"python -m benchmarks.gpu.learns {options}"
    for line in (RESULTS / f"{day}-learns.jsonl").read_text(encoding="utf-8").splitlines():
        found: dict[str, Any] = json.loads(line)
        if found["name"] == "reward" and str(found["command"]).startswith(command):
            return list(found["value"])
    raise LookupError(f"no {command} of {day}")


def drawn(curves: dict[str, list[float]]) -> Iterator[str]:
    """The picture, in pieces."""
    lines = [Line(name, list(enumerate(values, start=1))) for name, values in curves.items()]
    chart = line_chart(lines, x_label="rollout (512 samples each)", y_from=0.0, y_to=1.0)
    chart = re.sub(r"<div.*?</div>", "", chart).replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT - 60}" ', 1)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><style>{STYLE}</style>'
    yield f'<rect width="100%" height="100%" fill="#fff"/>{chart}'
    for index, name in enumerate(curves):
        x, y = 60 + index % 3 * 280, HEIGHT - 44 + index // 3 * 20
        yield f'<rect x="{x}" y="{y}" width="10" height="10" fill="{COLOURS[index]}"/>'
        yield f'<text x="{x + 15}" y="{y + 9}">{name}</text>'
    yield "</svg>\n"


if __name__ == "__main__":
    print("".join(drawn({name: rewards(*which) for name, which in SHOWN.items()})), end="")
