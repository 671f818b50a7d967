"""Numbers for Prometheus: of the queue, the workers and the calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from i2vgen.server.database import TOTAL_NAMES

if TYPE_CHECKING:
    from i2vgen.server.service import Service

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)


class Metrics:
    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.calls = Counter("i2vgen_http_requests", "Calls answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "i2vgen_http_seconds", "Time to the answer.", ("method", "route"), registry=self.registry, buckets=BUCKETS
        )
        self.registry.register(_Queue(service))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is the template of the path, so that ids do not become labels."""
        method = method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
        self.calls.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Queue:
    """Read from the database when asked: all API servers on it tell the same."""

    def __init__(self, service: Service):
        self.service = service

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("i2vgen_jobs", "Jobs in each state.", labels=["status"])
        for status, count in self.service.jobs.counts().items():
            jobs.add_metric([status], count)
        yield jobs
        oldest = self.service.jobs.oldest_waiting_seconds()
        yield GaugeMetricFamily("i2vgen_oldest_waiting_seconds", "Age of the oldest waiting job.", oldest)
        yield GaugeMetricFamily("i2vgen_workers", "Workers that are ready.", self.service.num_workers())
        yield GaugeMetricFamily("i2vgen_stored_bytes", "Files of all jobs.", self.service.jobs.num_bytes())
        totals = self.service.jobs.totals()
        for name in TOTAL_NAMES:
            unit = "i2vgen_" + (name if name.endswith("seconds") else f"jobs_{name}")
            yield CounterMetricFamily(unit, f"Since the database was made: {name}.", totals.get(name, 0.0))

    def describe(self) -> list[Metric]:
        """Nothing is read when the service starts."""
        return []
