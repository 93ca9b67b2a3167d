"""What the retriever tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

from rljob_trainer.metrics.labelled import Labelled

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which nothing reads
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class RetrieverMetrics:
    """The service's metrics in a registry of their own."""

    def __init__(self, job_name: str = "") -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rljob_retriever_requests", "Requests to /retrieve by status code.", ["code"], registry=self.registry
        )
        self.queries = Counter("rljob_retriever_queries", "Queries answered.", registry=self.registry)
        self.rejected = Counter(
            "rljob_retriever_rejected", "Requests refused because the queue was full.", registry=self.registry
        )
        self.batch = Histogram(
            "rljob_retriever_batch_size", "Queries searched at once.", buckets=_BATCHES, registry=self.registry
        )
        self.queued = Gauge("rljob_retriever_queued_queries", "Queries that wait.", registry=self.registry)
        self.seconds = Histogram(
            "rljob_retriever_request_seconds",
            "Time from a request's arrival to its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        for code in ("200", "503"):
            self.requests.labels(code)
        self.ready = Gauge("rljob_retriever_ready", "1 once the index has answered.", registry=self.registry)
        self.passages = Gauge("rljob_retriever_passages", "Passages in the index.", registry=self.registry)
        self.exposed = CollectorRegistry()
        """The same with the job's name on every sample, and what the process takes."""
        self.exposed.register(Labelled(self.registry, job_name=job_name))
        self.exposed.register(Labelled(ProcessCollector(registry=None), job_name=job_name, role="retriever"))
