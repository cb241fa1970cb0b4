"""What happened since the start, as numbers: operations, turns, reactions, the store's and the loop's times.

Who does a thing counts it here: control most of it, the store's thread its times, the heartbeat the loop's. Each number has
one writer. Readers on other threads take a number as it is at that moment: a sum may be one observation ahead of its
buckets, which no rate shows.
Does not: read a clock, or know Prometheus (web/metrics.py does).
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pyipvs import Change

log = logging.getLogger(__name__)

BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """How many observations of seconds fell below each of BOUNDS_S, as Prometheus counts them."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        """Nothing was observed yet."""
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def note(self, seconds: float) -> None:
        """One observation; a bound belongs to its own bucket."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """Upper bound and how many were not above it; the last, `+Inf`, is how many there were."""
        total, found = 0, []
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self._counts.copy(), strict=True):
            total += count
            found.append((bound, total))
        return found


@dataclass(slots=True)
class Tally:
    """What one turn did."""

    ops: int = 0
    refused: int = 0
    planned: int = 0
    reaction_s: float | None = None


@dataclass(slots=True)
class Counts:
    """What happened since the start; `shown` are the figures of the status."""

    ops: int = 0
    op_errors: int = 0
    turn_errors: int = 0
    drift: int = 0
    """Services of ours that somebody else changed in the kernel, found and repaired."""
    turns: int = 0
    longest_turn_s: float = 0.0
    reactions_s: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    operations: dict[tuple[str, str], int] = field(default_factory=dict)
    """By what was done (`add destination`) and its result: `done` or `refused`."""
    reacting: Histogram = field(default_factory=Histogram)
    """From a value observed to the kernel changed."""
    turning: Histogram = field(default_factory=Histogram)
    storing: Histogram = field(default_factory=Histogram)
    """The calls of the stores, each with its fdatasync."""
    lagging: Histogram = field(default_factory=Histogram)
    """How late the loop was."""
    _tally: Tally = field(default_factory=Tally)

    def copy(self) -> Counts:
        """The figures of the status as they are now."""
        return replace(self, reactions_s=self.reactions_s.copy())

    def applied(self, made: Iterable[Change], refused: Iterable[Change], planned: int, reaction_s: float | None) -> None:
        """Note operations that the kernel took and those that it refused, and the time from the value observed to the
        kernel changed (None when no value caused it)."""
        tally = self._tally
        done = self._by_kind(made, "done")
        failed = self._by_kind(refused, "refused")
        self.ops, self.op_errors = self.ops + done, self.op_errors + failed
        tally.ops, tally.refused, tally.planned = tally.ops + done, tally.refused + failed, tally.planned + planned
        if done and reaction_s is not None:
            tally.reaction_s = reaction_s
            self.reactions_s.append(reaction_s)
            self.reacting.note(reaction_s)

    def _by_kind(self, changes: Iterable[Change], result: str) -> int:
        kinds = Counter(change.operation for change in changes)
        for operation, number in kinds.items():
            self.operations[operation, result] = self.operations.get((operation, result), 0) + number
        return kinds.total()

    def turned(self, seconds: float) -> None:
        """Note the end of a turn of the loop, and log it when it did something."""
        self.turns += 1
        self.longest_turn_s = max(self.longest_turn_s, seconds)
        self.turning.note(seconds)
        self.tell(seconds)

    def tell(self, seconds: float) -> None:
        """One line for all that was done since the last one."""
        tally = self._tally
        if tally.ops or tally.refused:
            self._tally = Tally()
            reaction = None if tally.reaction_s is None else round(tally.reaction_s * 1e3, 2)
            shown = (tally.ops, tally.planned, tally.refused, reaction, seconds * 1e3)
            log.info("turn ops=%d planned=%d refused=%d reaction_ms=%s turn_ms=%.2f", *shown)

    def shown(self) -> dict[str, object]:
        """The figures, for the status."""
        figures = {"ops": self.ops, "op_errors": self.op_errors, "turn_errors": self.turn_errors, "drift": self.drift}
        longest_ms = round(self.longest_turn_s * 1e3, 1)
        return {**figures, "turns": self.turns, "longest_turn_ms": longest_ms, "reaction_ms": self.reaction_ms()}

    def reaction_ms(self) -> dict[str, float | int]:
        """Median, 99th percentile and maximum of the last thousand reactions in milliseconds."""
        if not self.reactions_s:
            return {"count": 0}
        ordered = sorted(self.reactions_s)
        at = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99), "max": len(ordered) - 1}
        return {"count": len(ordered), **{name: round(ordered[i] * 1e3, 3) for name, i in at.items()}}
