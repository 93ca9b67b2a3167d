"""PromQL that several dashboards share."""

from charts.dashboards.board import Query, Variable

JOB = 'namespace=~"$namespace", job_name=~"$job"'
EACH = "{{job_name}}"
RATE = "$__rate_interval"
OF_JOB = (
    Variable("namespace", "Namespace", "label_values(rljob_step, namespace)"),
    Variable("job", "RLJob", 'label_values(rljob_step{namespace=~"$namespace"}, job_name)'),
)


def now(metric: str, legend: str = EACH, *, also: str = "") -> Query:
    """A gauge of the chosen jobs."""
    return Query(f"{metric}{{{JOB}{f', {also}' if also else ''}}}", legend)


def rate(counter: str, *by: str, legend: str = "", also: str = "") -> Query:
    """A counter's increase per second, added up over everything but `by`."""
    inner = f"rate({counter}{{{JOB}{f', {also}' if also else ''}}}[{RATE}])"
    return Query(f"sum by ({', '.join(by)}) ({inner})", legend or " ".join(f"{{{{{label}}}}}" for label in by))


def quantile(share: float, histogram: str, matchers: str = JOB) -> Query:
    """A quantile of a histogram over the last minutes."""
    chosen = f"{{{matchers}}}" if matchers else ""
    expr = f"histogram_quantile({share:g}, sum by (le) (rate({histogram}_bucket{chosen}[{RATE}])))"
    return Query(expr, f"p{share * 100:g}")
