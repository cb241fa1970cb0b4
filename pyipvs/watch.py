"""What happens on the table over time: one reading after another, with the rates and changes between them.

Rates are differences of counters over the time between two readings: exact, and as fresh as the interval. The
kernel's own (Stats.connections_per_s and the like) are moving averages that it renews every 2 s.
Does not: read the kernel; whoever calls says how.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyipvs.changes import ChangeList
from pyipvs.model import ServiceKey, Stats
from pyipvs.ruleset import Ruleset, diff

Where = ServiceKey | tuple[ServiceKey, tuple[str, int]]  # a service, or one of its destinations by address and port


class Rates(NamedTuple):
    """Per second, over the last interval."""

    connections: float
    packets_in: float
    packets_out: float
    bytes_in: float
    bytes_out: float


class Sample(NamedTuple):
    """One reading. `interval_s`: seconds since the one before, 0 for the first, which has no rates and changes.
    `rates` has what was there both times."""

    at_s: float
    interval_s: float
    table: Ruleset
    changes: ChangeList
    rates: dict[Where, Rates]


def samples(
    read: Callable[[], Ruleset],
    interval_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Sample]:
    """Read every `interval_s` seconds, for ever. `at_s` is of `clock`. Raises what `read` does, ValueError."""
    if interval_s <= 0:
        raise ValueError(f"interval_s {interval_s} must be above 0")
    return _samples(read, interval_s, clock, sleep)


def _samples(
    read: Callable[[], Ruleset], interval_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[Sample]:
    at_s, table = clock(), read()
    counters = _counters(table)
    yield Sample(at_s, 0.0, table, ChangeList(), {})
    while True:
        sleep(max(0.0, at_s + interval_s - clock()))
        now_s, new = clock(), read()
        counted, elapsed_s = _counters(new), now_s - at_s
        rates = {where: _rates(counters[where], stats, elapsed_s) for where, stats in counted.items() if where in counters}
        yield Sample(now_s, elapsed_s, new, diff(table, new), rates)
        at_s, table, counters = now_s, new, counted


def _counters(table: Ruleset) -> dict[Where, Stats]:
    found: dict[Where, Stats] = {}
    for key, entry in table.items():
        if entry.stats is not None:
            found[key] = entry.stats
            found.update({(key, row.destination.key): row.stats for row in entry.status})
    return found


def _rates(old: Stats, new: Stats, elapsed_s: float) -> Rates:
    """A counter that went back was set to zero meanwhile: what it has now came since."""
    pairs = zip(old[: len(Rates._fields)], new, strict=False)
    return Rates(*((after - before if after >= before else after) / max(elapsed_s, 1e-9) for before, after in pairs))
