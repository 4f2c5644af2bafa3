"""Metrics of a server in Prometheus' text format: requests by status, images, batches, queue, latency, signals."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST


class Signals(Collector):
    """The counters of what watches requests, read when they are asked for."""

    def __init__(self, read: Callable[[], dict[str, int]]):
        self.read = read

    def collect(self) -> Iterator[CounterMetricFamily]:
        found = CounterMetricFamily(
            "robustq_signals", "Signals raised, by name. Monitoring, no defence.", labels=["signal"]
        )
        for name, count in sorted(self.read().items()):
            found.add_metric([name], count)
        yield found


class Metrics:
    """All that one application counts. Several of them in a process are apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter("robustq_requests", "Requests answered, by status of HTTP.", ["status"], registry=here)
        self.seconds = Histogram("robustq_request_seconds", "From request to answer.", buckets=SECONDS, registry=here)
        self.images = Counter("robustq_images", "Images answered.", registry=here)
        self.batches = Histogram(
            "robustq_batch_images", "Images that the engine got at once.", buckets=BATCHES, registry=here
        )
        self.waiting = Gauge("robustq_queue_images", "Images that wait for the engine.", registry=here)
        self.failures = Counter("robustq_watch_failures", "Requests that could not be watched.", registry=here)
        ProcessCollector(registry=self.registry)

    def watch_queue(self, length: Callable[[], float]) -> None:
        self.waiting.set_function(length)

    def watch_signals(self, read: Callable[[], dict[str, int]]) -> None:
        self.registry.register(Signals(read))

    def batch(self, images: int) -> None:
        self.batches.observe(images)
        self.images.inc(images)

    def watch_failed(self) -> None:
        self.failures.inc()

    def answered(self, status: int, seconds: float) -> None:
        self.requests.labels(status).inc()
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        return exposition.generate_latest(self.registry)


class Measured:
    """Counts every answer of an application, with the time that it took."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, begun = time.perf_counter(), False

        async def told(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.answered(message["status"], time.perf_counter() - start)
            await send(message)

        try:
            await self.app(scope, receive, told)
        except Exception:
            if not begun:  # the 500 is sent from outside
                self.metrics.answered(500, time.perf_counter() - start)
            raise
