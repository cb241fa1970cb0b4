"""The controller's own metrics, by prometheus-client: how fast it follows, what it did, how store, loop, Serf and HTTP fare.

Imported when metrics are first asked for: it takes as long as a third of a start.
Does not: count (fusisd.counts and requests.py do), or know services and destinations (families.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fusisd.counts import Histogram
from fusisd.ports import Core
from fusisd.web.requests import Requests


class Controller(Collector):
    """Collects anew at each scrape."""

    def __init__(self, core: Core, requests: Requests, clock: Callable[[], float]) -> None:
        """`clock` is the one that the snapshots' times are of."""
        self._core, self._requests, self._clock = core, requests, clock
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All of them in the exposition format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """See Collector: nothing is asked from the core in order to be registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield from self._counted()
        yield from self._status()
        yield from self._requested()

    def _counted(self) -> Iterator[Metric]:
        counts = self._core.counts()
        yield _histogram("fusis_reaction_seconds", "From a value observed to the kernel changed.", counts.reacting)
        yield _histogram("fusis_turn_seconds", "Turns of the control loop.", counts.turning)
        yield _histogram("fusis_store_seconds", "Calls of the store, each with its sync to disk.", counts.storing)
        yield _histogram("fusis_loop_lag_seconds", "How late the event loop was.", counts.lagging)
        operations = CounterMetricFamily(
            "fusis_operations", "Changes to the kernel's table, done or refused.", labels=("operation", "result")
        )
        for labels, number in counts.operations.copy().items():
            operations.add_metric(labels, number)
        yield operations
        yield CounterMetricFamily("fusis_turn_errors", "Turns that a defect ended; the log has it.", counts.turn_errors)
        drift = "Services of ours that somebody else changed in the kernel, found and repaired."
        yield CounterMetricFamily("fusis_drift", drift, counts.drift)

    def _status(self) -> Iterator[Metric]:
        snapshot, reading, now_s = self._core.snapshot(), self._core.statistics(), self._clock()
        status: Mapping[str, Any] = snapshot.status
        build = GaugeMetricFamily("fusis_build_info", "The version; always 1.", labels=("version",))
        build.add_metric((str(status.get("version", "")),), 1)
        yield build
        orphans = "Services of ours that are wanted no more and still in the kernel."
        yield GaugeMetricFamily("fusis_orphans", orphans, status.get("orphans", 0))
        problems = "What the status names as wrong; fusisctl status says what."
        yield GaugeMetricFamily("fusis_problems", problems, len(status.get("problems", ())))
        connected = "Whether we hear from our Serf agent; always 1 when Serf is off."
        yield GaugeMetricFamily("fusis_serf_connected", connected, int(status.get("serf_connected", True)))
        nodes = GaugeMetricFamily("fusis_nodes", "Real servers by Serf's word.", labels=("status",))
        for word, number in sorted(Counter(node["status"] for node in status.get("nodes", ())).items()):
            nodes.add_metric((word,), number)
        yield nodes
        yield from _checks(status.get("checks", {}))
        yield GaugeMetricFamily("fusis_snapshot_age_seconds", "Age of what readers see.", now_s - snapshot.at_s)
        if reading.entries:
            yield GaugeMetricFamily("fusis_statistics_age_seconds", "Age of the counters.", now_s - reading.at_s)
        cost = "What reading the counters cost the loop the last time."
        yield GaugeMetricFamily("fusis_statistics_cost_seconds", cost, reading.cost_s)
        stale = "Whether the kernel could not be read, so that the counters are old."
        yield GaugeMetricFamily("fusis_statistics_stale", stale, int(bool(reading.problem)))

    def _requested(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "fusis_http_requests", "Answers by route; what is refused before a route is not in here.",
            labels=("method", "route", "code"),
        )  # fmt: skip
        for (method, route, code), number in self._requests.answered().items():
            requests.add_metric((method, route, str(code)), number)
        yield requests
        yield _histogram("fusis_http_request_seconds", "From a whole request to its answer.", self._requests.seconds)


def _checks(figures: Mapping[str, float]) -> Iterator[Metric]:
    for name, key, text in (
        ("fusis_check_targets", "targets", "Addresses, ports and questions that are probed."),
        ("fusis_check_targets_unable", "unable", "Of those the ones that this machine cannot probe at present."),
        ("fusis_check_interval_stretch", "interval_stretch", "How far intervals are stretched for want of time; 1: not."),
    ):
        yield GaugeMetricFamily(name, text, figures.get(key, 1.0 if key == "interval_stretch" else 0.0))


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=histogram.buckets(), sum_value=histogram.sum_s)
