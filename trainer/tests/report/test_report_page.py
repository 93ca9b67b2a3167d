"""The report holds what happened, and nothing in it can break out of its place."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.report.html import render
from rljob_trainer.report.summary import terminal_lines
from rljob_trainer.report.svg import Line, line_chart, ticks
from rljob_trainer.report.write import write_report

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&'


def summary(**more: Any) -> dict[str, Any]:
    return {
        "job": "quickstart",
        "state": "Succeeded",
        "seed": 0,
        "steps": 30,
        "total_steps": 30,
        "em_after_sft": 0.2,
        "em_after_grpo": 0.97,
        "em_without_retriever": 0.0,
        "evaluations": {
            "held-out/final": {"score": 0.97, "score/2hop": 0.95, "samples": 64.0, "response_length": 50.0}
        },
        "tokens_per_second": 900.0,
        "seconds": 200.0,
        "stage_seconds": {"sft": 120.0, "rl": 70.0, "evaluate": 10.0},
        "peak_memory_bytes": 2**31,
        "world_size": 1,
        "engines": 1,
        "threads_per_rank": 1,
        "versions": {"torch": "2.14"},
    } | more


def history() -> list[dict[str, Any]]:
    sft = [{"kind": "sft", "step": step, "loss": 3.0 / step} for step in range(1, 1001)]
    rl = [
        {
            "kind": "rl",
            "step": 1000 + step,
            "reward": step / 20,
            "kl": 0.01 * step,
            "seconds/train": 1.0,
            "seconds/idle": 0.1,
        }
        for step in range(1, 21)
    ]
    return [*sft, *rl, {"kind": "evaluation", "name": "held-out/final", "step": 1020, "score": 0.97}]


def completion(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {
        "kind": "completion",
        "name": "train",
        "step": 1001,
        "group": 0,
        "index": 0,
        "prompt": text,
        "segments": [[text, True], ["observed " + text, False]],
        "label": {"target": [text]},
        "reward": 1.0,
        "status": "completed",
        "advantage": 0.5,
    } | more


class Elements(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.marks: list[str] = []
        self.masked: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "mark" in self._open:
            self.marks.append(data)
        if "s" in self._open:
            self.masked.append(data)


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def test_text_of_data_models_and_manifests_is_escaped() -> None:
    page = render(summary(job=EVIL), history(), [completion(EVIL)], {"spec": {"note": EVIL}})
    elements = parsed(page)
    assert "script" not in elements.tags
    assert "img" not in elements.tags
    assert elements.marks == [EVIL]
    assert elements.masked == ["observed " + EVIL]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = render(summary(), history(), [completion()], {})
    assert "src=" not in page
    assert "href=" not in page
    assert "url(" not in page


def test_curves_scores_and_times_are_shown() -> None:
    page = render(summary(), history(), [completion()], {})
    for part in ("Reward", "KL against the reference", "0.970", "Stages", "Transcripts", "2hop 0.950"):
        assert part in page
    assert len(page) < 200_000


def test_a_run_without_rl_or_evaluations_has_a_page_too() -> None:
    bare = summary(
        em_after_sft=None, em_after_grpo=None, em_without_retriever=None, evaluations={}, tokens_per_second=None,
        stage_seconds={"sft": 3.0}, peak_memory_bytes=None,
    )  # fmt: skip
    page = render(bare, [{"kind": "sft", "step": 1, "loss": 1.0}], [], {})
    assert "SFT loss" in page
    assert "none" in page
    assert terminal_lines(bare)[-1].strip().startswith("seconds")


def test_summary_and_report_are_written_whole(tmp_path: Path) -> None:
    write_report(tmp_path, summary(), {"spec": {}})
    assert json.loads((tmp_path / "summary.json").read_text())["em_after_grpo"] == 0.97
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.json"]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_within_the_range_and_are_few(low: float, span: float) -> None:
    high = low + span
    if not high > low:
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low - span * 1e-6 - 1e-9 <= tick <= high + span * 1e-6 + 1e-9 for tick in found)


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=20))
def test_any_numbers_make_a_chart(points: list[tuple[float, float]]) -> None:
    chart = line_chart([Line("a", points)], x_label="step")
    assert "nan" not in chart
    assert "inf" not in chart.replace("info", "")
