"""The last minutes of each service and of all, from the kernel's counters: what the small plots show.

A sample is what happened since the one before, by the counters and not by the kernel's averages, so that one who looks
seldom misses nothing. The counters are read only while somebody looks, and so there is no more past than that.
Does not: read the kernel, or draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fusisd.ports import Reading
from pyipvs import ServiceKey

STEP_S = 5.0
KEPT_S = 300.0


class Sample(NamedTuple):
    """Connections a second by service, and of all services connections and bytes a second, until `at_s`."""

    at_s: float
    connections: Mapping[ServiceKey, float]
    all_connections: float
    all_bytes: float


Counters = dict[ServiceKey, tuple[int, int]]
Point = tuple[float, float]
"""Seconds before the newest sample, and the value."""


class Past(NamedTuple):
    """The samples of the last minutes, oldest first; nothing in it changes."""

    samples: tuple[Sample, ...] = ()

    def of(self, key: ServiceKey) -> list[Point]:
        """Connections a second of a service, oldest first."""
        return [(self._age_s(row), row.connections[key]) for row in self.samples if key in row.connections]

    def connections(self) -> list[Point]:
        """Those of all services."""
        return [(self._age_s(row), row.all_connections) for row in self.samples]

    def volume(self) -> list[Point]:
        """Bytes a second of all services, in and out."""
        return [(self._age_s(row), row.all_bytes) for row in self.samples]

    def _age_s(self, row: Sample) -> float:
        return self.samples[-1].at_s - row.at_s


class Trends:
    """Takes readings, keeps samples. For one thread at a time."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.past = Past()
        """Any thread may take it."""
        self._before_s = float("-inf")
        self._before: dict[ServiceKey, tuple[int, int]] = {}

    def note(self, reading: Reading, keys: Iterable[ServiceKey]) -> None:
        """Take the counters of these services, unless the last ones are newer than STEP_S."""
        passed_s = reading.at_s - self._before_s
        if not reading.entries or passed_s < STEP_S:
            return
        now = _counters(reading, keys)
        if self._before:
            sample = _sample(reading.at_s, passed_s, self._before, now)
            kept = [row for row in self.past.samples if reading.at_s - row.at_s <= KEPT_S]
            self.past = Past((*kept, sample))
        self._before_s, self._before = reading.at_s, now


def _sample(at_s: float, passed_s: float, before: Counters, now: Counters) -> Sample:
    """A service that is new, was zeroed or made anew begins here."""
    rates, moved = {}, 0
    for key, (connections, volume) in now.items():
        old = before.get(key)
        if old is not None and connections >= old[0] and volume >= old[1]:
            rates[key] = (connections - old[0]) / passed_s
            moved += volume - old[1]
    return Sample(at_s, rates, sum(rates.values()), moved / passed_s)


def _counters(reading: Reading, keys: Iterable[ServiceKey]) -> Counters:
    """Connections and bytes so far."""
    found = {key: reading.entries[key].stats for key in keys if key in reading.entries}
    return {key: (row.connections, row.bytes_in + row.bytes_out) for key, row in found.items() if row is not None}
