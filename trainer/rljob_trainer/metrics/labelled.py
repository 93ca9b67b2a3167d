"""Further labels on the samples of a collector."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.registry import Collector


class Labelled(Collector):
    """Another collector's metrics, each sample with further labels."""

    def __init__(self, inner: Collector, **labels: str) -> None:
        self._inner, self._labels = inner, labels

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        for family in self._inner.collect():
            copy = Metric(family.name, family.documentation, family.type)
            copy.samples = [sample._replace(labels={**sample.labels, **self._labels}) for sample in family.samples]
            yield copy
