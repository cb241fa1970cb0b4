"""How much longer than asked the intervals are, so that the loop can carry the probes.

Probes that begin late mean more of them than slots or processor time: then every interval is stretched by the same
factor, a quarter more each second as long as it gets worse, and back slowly once they begin in time. Without it the loop
would do nothing but probe, and each turn of control would wait.
Does not: schedule anything.
"""

from __future__ import annotations

LATE_S = 0.1  # on average over a second; a long turn of control makes some probes as late, but not all
IN_TIME_S = 0.02
MOST = 100.0


def stretched(stretch: float, late_s: float, before_s: float) -> float:
    """The next second's factor (>= 1.0): probes of this second began so late on average, those of the one before so."""
    if late_s > LATE_S:
        return min(MOST, stretch * 1.25) if late_s >= before_s else stretch
    if late_s < IN_TIME_S:
        return max(1.0, stretch * 0.95 - 0.01)
    return stretch


class Load:
    """What the probes of the running second were, and what follows from it."""

    def __init__(self) -> None:
        """Nothing was measured yet."""
        self.stretch = 1.0
        self.per_second = 0.0
        self._begun = self._done = 0
        self._late_s = self._before_s = 0.0

    def began(self, late_s: float) -> None:
        """A probe began this much after it was due."""
        self._begun += 1
        self._late_s += max(0.0, late_s)

    def done(self) -> None:
        """A probe ended."""
        self._done += 1

    def turn(self, passed_s: float, waiting: int) -> None:
        """Begin a new second: the last one took `passed_s`, and so many wait for a slot."""
        nothing_begun_s = passed_s if waiting else 0.0
        late_s = self._late_s / self._begun if self._begun else nothing_begun_s
        self.stretch, self._before_s = stretched(self.stretch, late_s, self._before_s), late_s
        self.per_second = self._done / passed_s if passed_s > 0 else 0.0
        self._begun = self._done = 0
        self._late_s = 0.0
