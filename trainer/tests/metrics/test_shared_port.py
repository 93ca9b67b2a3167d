"""Several processes, one metrics port."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rljob_trainer.metrics.exporter import DriverMetrics, ProcessMetrics, serve, serve_worker

WORKER = """
import sys, time
from rljob_trainer.metrics.exporter import ProcessMetrics, serve_worker
metrics = ProcessMetrics("j", sys.argv[1], int(sys.argv[2]))
metrics.set({"loss": 0.5, "running": 1.0})
print(serve_worker(metrics.registry, int(sys.argv[3]), sys.argv[4]), flush=True)
time.sleep(300)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def samples(port: int) -> dict[tuple[str, str, str], float]:
    """Numbers by name, role of the process and index. Two samples of one series are an error."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    names = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in found]
    assert len(names) == len(set(names))
    assert page.count("# TYPE process_resident_memory_bytes ") == 1
    return {(s.name, s.labels.get("role", ""), s.labels.get("index", "")): s.value for s in found}


def eventually(probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not probe():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def worker(role: str, index: int, port: int, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, role, str(index), str(port), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert int(process.stdout.readline())
    return process


def test_a_local_driver_serves_its_ranks_and_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLJOB_NAME", raising=False)
    monkeypatch.delenv("RLJOB_NAME", raising=False)
    port = free_port()
    rank, engine = worker("rank", 0, port, tmp_path), worker("engine", 0, port, tmp_path)
    try:
        assert serve(DriverMetrics("j").registry, port, tmp_path) == port
        found = samples(port)
        assert {role for name, role, _ in found if name == "process_cpu_seconds_total"} == {"driver", "rank", "engine"}
        assert found[("rljob_rank_loss", "", "0")] == 0.5
        assert found[("rljob_silent_processes", "", "")] == 0
        engine.kill()
        engine.wait()
        assert ("rljob_engine_running_requests", "", "0") not in samples(port)
    finally:
        for process in (rank, engine):
            process.kill()
            process.wait()


def test_a_busy_port_is_an_error_on_a_cluster_and_replaced_at_home(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            serve(DriverMetrics("j").registry, port, tmp_path, strict=True)
        assert serve(DriverMetrics("j").registry, port, tmp_path) not in (0, port)
    assert (
        serve(DriverMetrics("j").registry, 0, tmp_path)
        == serve_worker(ProcessMetrics("j", "rank", 0).registry, 0, tmp_path)
        == 0
    )


def test_the_processes_of_a_pod_share_its_port_and_take_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLJOB_NAME", "j")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    port = free_port()
    first = worker("rank", 0, port, tmp_path)
    second = worker("rank", 1, port, tmp_path)

    def ranks() -> set[str]:
        try:
            return {index for name, _, index in samples(port) if name == "rljob_rank_loss"}
        except OSError:
            return set()

    try:
        eventually(lambda: ranks() == {"0", "1"})
        first.kill()
        first.wait()
        eventually(lambda: ranks() == {"1"})
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
