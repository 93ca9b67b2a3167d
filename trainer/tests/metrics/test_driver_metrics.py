"""Prometheus names and what the terminal shows."""

import io
import re

import pytest
from prometheus_client import generate_latest
from rich.console import Console
from rljob_trainer.metrics.catalog import ENGINE
from rljob_trainer.metrics.display import LiveDisplay, PlainDisplay, sparkline
from rljob_trainer.metrics.exporter import MOST_NAMES, DriverMetrics, ProcessMetrics
from rljob_trainer.metrics.goodput import Devices, gpu_seconds
from rljob_trainer.metrics.timing import PhaseTimer


def exported() -> str:
    metrics = DriverMetrics("quickstart")
    metrics.steps(12, 140, 3, 3)
    metrics.values({"reward": 0.41, "kl": 0.02, "unknown": 1.0})
    phases = {"generate": 1.5, "train": 2.0, "idle": 0.25, "total": 3.75}
    metrics.phases(phases, gpu_seconds(phases, Devices(1, 1)))
    metrics.values({"reward/em": 0.3, "reward_by_source/nq": 0.5, "reward_by_source/hotpotqa": 0.2})
    metrics.stage("RL")
    metrics.trained("RL", 700.0)
    metrics.evaluation("held-out", 0.2)
    metrics.generated(960, {"completed": 190, "failed": 2})
    metrics.committed()
    return generate_latest(metrics.registry).decode()


def test_numbers_of_a_run_are_exported_with_the_jobs_name() -> None:
    text = exported()
    assert 'rljob_step{job_name="quickstart"} 12.0' in text
    assert 'rljob_steps_planned{job_name="quickstart"} 140.0' in text
    assert 'rljob_reward_mean{job_name="quickstart"} 0.41' in text
    assert 'rljob_phase_seconds_total{job_name="quickstart",phase="train"} 2.0' in text
    assert 'rljob_evaluation_score{job_name="quickstart",set="held-out"} 0.2' in text
    assert 'rljob_failed_samples_total{job_name="quickstart",status="failed"} 2.0' in text
    assert 'phase="total"' not in text
    assert 'rljob_reward_component_mean{component="em",job_name="quickstart"} 0.3' in text
    assert 'rljob_source_reward_mean{job_name="quickstart",source="nq"} 0.5' in text
    assert 'rljob_gpu_seconds_total{activity="generate",group="rollout",job_name="quickstart"} 1.5' in text
    assert 'rljob_trained_tokens_total{job_name="quickstart",stage="RL"} 700.0' in text
    assert 'rljob_stage{job_name="quickstart",stage="RL"} 1.0' in text
    assert "_created" not in text


def test_every_series_has_a_help_text_and_a_prefix() -> None:
    names = re.findall(r"^# HELP (\S+) (.+)$", exported(), flags=re.MULTILINE)
    own = [(name, text) for name, text in names if not name.startswith("process_")]
    assert own
    assert all(name.startswith("rljob_") and text for name, text in own)


def test_a_rank_or_engine_exports_its_own() -> None:
    metrics = ProcessMetrics("quickstart", "engine", 1)
    metrics.set({"generated_tokens": 5.0})
    text = generate_latest(metrics.registry).decode()
    assert 'rljob_engine_generated_tokens_total{index="1",job_name="quickstart"} 5.0' in text


def test_labels_stay_few_whatever_the_data_holds() -> None:
    metrics = DriverMetrics("j")
    metrics.values({f"reward_by_source/{number}": 0.5 for number in range(1000)})
    text = generate_latest(metrics.registry).decode()
    assert text.count("rljob_source_reward_mean{") == MOST_NAMES + 1
    assert 'source="other"' in text


def test_an_engine_keeps_nothing_from_prometheus() -> None:
    """Every number that the torch engine and its service have is in the catalog."""
    keys = {"generated_tokens", "prefilled_tokens", "steps", "busy_seconds", "running", "waiting"}
    keys |= {"policy_version", "samples", "failed_samples", "search_requests", "search_retries", "search_failures"}
    assert keys <= {series.key for series in ENGINE}


def test_seconds_of_calls_are_counted_though_the_call_fails() -> None:
    metrics = ProcessMetrics("j", "rank", 3)
    with pytest.raises(ValueError, match="broken"), metrics.call("rl_step"):
        raise ValueError("broken")
    text = generate_latest(metrics.registry).decode()
    assert 'rljob_rank_calls_total{call="rl_step",index="3",job_name="j"} 1.0' in text
    assert 'process_resident_memory_bytes{index="3",job_name="j",role="rank"}' in text


def test_phases_and_idle_make_up_the_whole() -> None:
    timer = PhaseTimer()
    with timer.phase("train"):
        pass
    seconds = timer.take()
    assert abs(sum(value for name, value in seconds.items() if name != "total") - seconds["total"]) < 1e-6
    assert timer.take()["train"] == 0.0


def test_plain_lines_name_stages_scores_and_the_last_step() -> None:
    out = io.StringIO()
    display = PlainDisplay(out, interval=3600.0)
    for step in range(1, 4):
        display.stage("RL", step, 3)
        display.values("rl", step, {"reward": step / 10, "tokens_per_second": 812.0})
    display.evaluation("held-out/final", 0.97)
    assert out.getvalue().splitlines() == [
        "RL: 3 steps",
        "RL 1/3  reward 0.100  tok/s 812",
        "RL 3/3  reward 0.300  tok/s 812",
        "evaluation held-out/final: 0.970",
    ]


def test_the_live_panel_shows_bars_reward_and_scores() -> None:
    out = io.StringIO()
    display = LiveDisplay("quickstart", Console(file=out, force_terminal=True, width=100))
    display.stage("SFT", 5, 10)
    display.stage("RL", 1, 2)
    for reward in (0.1, 0.9):
        display.values("rl", 1, {"reward": reward})
    display.evaluation("held-out/after_sft", 0.2)
    display.close()
    text = out.getvalue()
    for part in ("quickstart", "SFT", "RL", "0.10 → 0.90", "held-out/after_sft 0.200"):
        assert part in text


def test_sparkline_spans_the_range() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▄█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([]) == ""
