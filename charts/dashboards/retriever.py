"""The retrievers of jobs."""

from charts.dashboards.board import Board, Panel, Query, Row, Variable
from charts.dashboards.queries import EACH, JOB, RATE, now, quantile, rate

_REQUESTS = f"rate(rljob_retriever_requests_total{{{JOB}}}[{RATE}])"
_REFUSED = f'rate(rljob_retriever_requests_total{{{JOB}, code="503"}}[{RATE}])'
_BATCHED = f"rate(rljob_retriever_batch_size_sum{{{JOB}}}[{RATE}])"
_BATCHES = f"rate(rljob_retriever_batch_size_count{{{JOB}}}[{RATE}])"

BOARD = Board(
    "retriever",
    "Retriever",
    "Searches: rate, latency, queue, refusals.",
    variables=(
        Variable("namespace", "Namespace", "label_values(rljob_retriever_ready, namespace)"),
        Variable("job", "RLJob", 'label_values(rljob_retriever_ready{namespace=~"$namespace"}, job_name)'),
    ),
    rows=(
        Row(
            "Service",
            (
                Panel(
                    "Ready",
                    (Query(f"sum(rljob_retriever_ready{{{JOB}}})"),),
                    "Retrievers that answer.",
                    "none",
                    "stat",
                    6,
                ),
                Panel("Passages", (now("rljob_retriever_passages"),), "In the index.", "short", "stat", 6),
                Panel(
                    "p99", (quantile(0.99, "rljob_retriever_request_seconds"),), "Latency of a request.", "s", "stat", 6
                ),
                Panel(
                    "Refused",
                    (Query(f"sum({_REFUSED}) / clamp_min(sum({_REQUESTS}), 1e-9)"),),
                    "Share of requests answered 503.",
                    "percentunit",
                    "stat",
                    6,
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel("Queries", (rate("rljob_retriever_queries_total", "job_name"),), "Answered per second."),
                Panel(
                    "Requests by code",
                    (rate("rljob_retriever_requests_total", "code"),),
                    "Per second; 503: the queue was full.",
                    "reqps",
                ),
                Panel(
                    "Latency",
                    tuple(quantile(share, "rljob_retriever_request_seconds") for share in (0.5, 0.9, 0.99)),
                    "From arrival to answer.",
                    "s",
                ),
                Panel("Waiting", (now("rljob_retriever_queued_queries"),), "Queries in the queue.", "none"),
                Panel(
                    "Queries at once",
                    (Query(f"sum by (job_name) ({_BATCHED}) / sum by (job_name) ({_BATCHES})", EACH),),
                    "Mean batch of a search.",
                ),
                Panel("Refused", (rate("rljob_retriever_rejected_total", "job_name"),), "Requests per second."),
            ),
        ),
        Row(
            "Who asks",
            (
                Panel(
                    "Searches by engine",
                    (rate("rljob_engine_search_requests_total", "index", legend="engine {{index}}"),),
                    "Per second.",
                ),
                Panel(
                    "Retries and failures",
                    (
                        rate("rljob_engine_search_retries_total", "job_name", legend="retries"),
                        rate("rljob_engine_search_failures_total", "job_name", legend="failures"),
                    ),
                    "Searches per second.",
                ),
                Panel(
                    "Memory",
                    (now("process_resident_memory_bytes", "{{pod}}", also='role="retriever"'),),
                    "Resident.",
                    "bytes",
                ),
            ),
        ),
    ),
)
