"""Grafana dashboards of the chart, as code: `python -m charts.dashboards` writes charts/rljob/dashboards."""
