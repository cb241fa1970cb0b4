"""The life of a drain as a table: what a look at the kernel makes of a destination that is on its way out. Pure.

Nothing is remembered from one look to the next but when the drain began: the phase is what is seen (level-triggered), so
that a restart in its middle, a hand on the kernel or a look that was missed leads nobody astray. From whichever phase it
was, a sight leads to the same one. A drain that is called off (added again, the node is back) just is no more.
Does not: read a clock, or decide who drains (judge.py does) or what is noted of it (notes.py does).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fusisd.drawing import OUTSIDE, drawn
from fusisd.ports import KernelDestination
from pyipvs import Protocol

QUIET_S = 3.0  # a drain lasts this long at least: a handshake or the last packets of an answer count as inactive

DrainKey = tuple[str, str | None]
"""(service, destination), or (service, None) for the whole service."""


@dataclass(frozen=True, slots=True)
class Drain:
    """A drain that runs: since when, and for how long at the most, in monotonic seconds."""

    since_s: float
    limit_s: float

    @property
    def until_s(self) -> float:
        """Its deadline."""
        return self.since_s + self.limit_s


class Phase(Enum):
    """Where a drain is. Weight 0 is wanted in all of them but the last, where nothing is."""

    ASKED = "asked"
    WAITING = "waiting"
    QUIET = "quiet"
    OVER = "over"


class Sight(Enum):
    """What a look at the kernel and the clock shows; the first of these that holds."""

    __hash__ = object.__hash__  # Enum's own hashes the name, in Python, at every look at what drains

    GONE = "gone"
    LATE = "late"
    WEIGHTED = "weighted"
    ACTIVE = "active"
    YOUNG = "young"
    IDLE = "idle"


MEANING = {
    Sight.GONE: "not in the kernel, or UDP, which never lingers at weight 0",
    Sight.LATE: "its deadline has come",
    Sight.WEIGHTED: "the kernel still gives it new connections",
    Sight.ACTIVE: "connections are active",
    Sight.YOUNG: f"none is active, but the drain is younger than {QUIET_S:g} s",
    Sight.IDLE: "none is active",
}

TABLE = {
    Sight.GONE: Phase.OVER,
    Sight.LATE: Phase.OVER,
    Sight.WEIGHTED: Phase.ASKED,
    Sight.ACTIVE: Phase.WAITING,
    Sight.YOUNG: Phase.QUIET,
    Sight.IDLE: Phase.OVER,
}

_SHOWN = {
    Phase.ASKED: "weight 0 is to come",
    Phase.WAITING: "weight 0, until no connection is active",
    Phase.QUIET: f"weight 0, until it lasted {QUIET_S:g} s",
    Phase.OVER: "out of the kernel, then out of the intent",
}
_AROUND = [f"{OUTSIDE} --> {Phase.ASKED.value}: an operator deletes it, its node leaves, its tags drop the service"]
_AROUND += [f"{phase.value} --> {OUTSIDE}: called off" for phase in (Phase.ASKED, Phase.WAITING, Phase.QUIET)]
_AROUND += [f"{Phase.OVER.value} --> {OUTSIDE}: deleted"]


def sight_of(drain: Drain, protocol: Protocol | None, present: KernelDestination | None, now_s: float) -> Sight:
    """What is seen of a drain; `present` is what the kernel has, None when that is nothing."""
    if present is None or protocol is Protocol.UDP:
        return Sight.GONE
    if now_s >= drain.until_s:
        return Sight.LATE
    if present.destination.weight:
        return Sight.WEIGHTED
    if present.active:
        return Sight.ACTIVE
    return Sight.YOUNG if now_s < drain.since_s + QUIET_S else Sight.IDLE


def wake_s(drain: Drain, present: KernelDestination | None, now_s: float) -> float:
    """When to look again though nothing is heard of it: at the deadline, sooner when no connection is active."""
    if present is not None and present.active:
        return drain.until_s
    return min(drain.until_s, max(drain.since_s + QUIET_S, now_s + 1.0))


def diagram() -> str:
    """`TABLE` for docs, as a Mermaid state diagram."""
    lives: list[Phase] = [phase for phase in Phase if phase is not Phase.OVER]
    table = {(before, sight): after for before in lives for sight, after in TABLE.items()}
    return drawn(table, _AROUND, _SHOWN, MEANING)
