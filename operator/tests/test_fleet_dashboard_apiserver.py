"""What the dashboards ask of the operator: a real operator on a real apiserver, scraped by a real Prometheus.

All panels are asked of a real job in e2e/tests/test_rljob_quickstart.py.
"""

import json
import re
import socket
import time
from pathlib import Path

import pytest

from charts.dashboards.results import ask_all
from e2e.conftest import installed_crd, kubeconfig  # noqa: F401 - fixtures
from e2e.support import prometheus
from e2e.support.wait import wait_for
from tests.test_reconcile_apiserver import kubectl, manifest, operator  # noqa: F401 - fixtures

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
OF_OPERATOR = re.compile(r"\brljob_operator_\w+|\brljob_job_phase\b")


def test_every_panel_on_the_operator_has_data(kubectl, operator, tmp_path: Path) -> None:  # noqa: F811
    if not prometheus.available():
        pytest.skip("no prometheus, and no apt-get to fetch it by")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kubectl.apply(manifest(kubectl, "seen"))
    target = {"targets": [f"127.0.0.1:{operator.port}"], "labels": {"namespace": "rljob-system", "pod": "operator"}}
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "charts/rljob/rules/rljob.yaml")],
        "scrape_configs": [{"job_name": "operator", "static_configs": [target]}],
    }
    board = json.loads((ROOT / "charts/rljob/dashboards/fleet.json").read_text(encoding="utf-8"))
    with prometheus.running(tmp_path, config, port) as client:
        start = time.time()

        def missing() -> list[str]:
            # Something to reconcile between two scrapes: nobody looks at a job at rest.
            kubectl("annotate", "--overwrite", "rlj/seen", f"example.com/now={time.time()}")
            results = ask_all(board, lambda expr: client.range(expr, start, time.time(), 1.0))
            return [expr for result in results for expr in result.empty if OF_OPERATOR.search(expr)]

        wait_for("targets", lambda: all(one["health"] == "up" for one in client.targets()), seconds=30)
        wait_for("data for every panel on the operator", lambda: not missing(), seconds=60)
        found = client.range('rljob_job_phase{job_name="seen"}', start, time.time(), 1.0)
        assert {labels["job_namespace"] for labels, _ in found} == {kubectl.namespace}
        assert not [alert for alert in client.alerts() if "Operator" in alert["labels"]["alertname"]]
