"""What a server counts, in Prometheus's format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from svfit_diffusion.serving.engine import Engine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_PICTURES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of one replica. It is the engine's observer.

    Attributes:
        registry: of all that is counted.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "svfit_requests", "Requests.", ("route", "status"), registry=self.registry
        )
        self._latency = Histogram(
            "svfit_request_seconds",
            "Seconds until a request was answered.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._waited = Histogram(
            "svfit_wait_seconds",
            "Seconds that a picture waited.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "svfit_batch_pictures",
            "Pictures of a batch.",
            buckets=_PICTURES,
            registry=self.registry,
        )
        self._drawing = Histogram(
            "svfit_batch_seconds",
            "Seconds of drawing a batch.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def watch(self, engine: Engine) -> None:
        """Tell what an engine holds, too."""
        self.registry.register(_EngineCollector(engine))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def drawn(self, pictures: int, seconds: float) -> None:
        """A batch is done."""
        self._batches.observe(pictures)
        self._drawing.observe(seconds)

    def begun(self, waited: float) -> None:
        """A picture that waited for so many seconds was drawn."""
        self._waited.observe(waited)


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, shelf = self._engine, self._engine.shelf
        yield GaugeMetricFamily("svfit_waiting", "Pictures that wait.", len(engine))
        yield GaugeMetricFamily("svfit_adapters", "Adapters in memory.", len(shelf))
        yield GaugeMetricFamily("svfit_adapter_bytes", "Bytes of their shifts.", shelf.bytes)
        asked = CounterMetricFamily(
            "svfit_adapter_lookups", "Adapters asked for, by where they were.", labels=["place"]
        )
        asked.add_metric(["memory"], shelf.found)
        asked.add_metric(["library"], shelf.fetched)
        yield asked
