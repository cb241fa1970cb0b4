"""How it stands, for one glance: what is wrong, in words, and the services with the worst first. Pure.

A destination that fails its check is no problem of fusisd's, which does what it should: the status calls that well. For
who runs the servers it is not, and so it is told here. Three levels: a service that nobody serves; something wrong; well.
Does not: decide anything, or know HTML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from fusisd.ports import DestinationView, Reading, ServiceView, Snapshot

OLD_S = 5.0
NAMED = 3  # so many destinations are named in a sentence

BAD = ("down", "failed", "refused")
PENDING = ("checking", "preparing")
_RANKS = {**dict.fromkeys(BAD, 0), "draining": 1, **dict.fromkeys(PENDING, 2)}


class Level(Enum):
    """From worst to best."""

    DOWN = "down"
    ATTENTION = "attention"
    WELL = "well"


_WORST_FIRST = {level: rank for rank, level in enumerate(Level)}


class Trouble(NamedTuple):
    """One thing that is wrong; `service` is the name of the one that it is of, or ""."""

    level: Level
    text: str
    service: str = ""


class Standing(NamedTuple):
    """A service of ours. `word` is its state, `text` what there is to say; `serving` destinations have weight in the
    kernel and are not known to fail."""

    view: ServiceView
    level: Level
    word: str
    text: str
    serving: int
    rows: tuple[DestinationView, ...]
    """Its destinations, what is wrong first."""


@dataclass(frozen=True, slots=True)
class Overview:
    """All that is to be told at the top, and what is below it in order."""

    level: Level
    headline: str
    troubles: tuple[Trouble, ...]
    services: tuple[Standing, ...]
    foreign: tuple[ServiceView, ...]
    status: Mapping[str, Any]


def overview(snapshot: Snapshot, reading: Reading, now_s: float) -> Overview:
    """How it stands by what is published."""
    status = snapshot.status
    own = [standing(view) for view in snapshot.services if not view.foreign]
    own.sort(key=lambda row: (_WORST_FIRST[row.level], row.view.name))
    troubles = [Trouble(row.level, f"{row.view.name}: {row.text}", row.view.name) for row in own if row.level != Level.WELL]
    troubles += _general(snapshot, status, reading, now_s)
    troubles.sort(key=lambda row: _WORST_FIRST[row.level])
    level = troubles[0].level if troubles else Level.WELL
    foreign = tuple(view for view in snapshot.services if view.foreign)
    return Overview(level, _headline(own, troubles), tuple(troubles), tuple(own), foreign, status)


def _general(
    snapshot: Snapshot, status: Mapping[str, Any], reading: Reading, now_s: float
) -> Iterator[Trouble]:
    age_s = now_s - snapshot.at_s
    if age_s > OLD_S:
        yield Trouble(Level.DOWN, f"fusisd's loop does not answer: all that is shown is {age_s:.0f} s old")
    if problems := status.get("problems"):
        # a service's own reason is told with the service
        told = {f"{head}: {view.reason}" for view in snapshot.services for head in (f"service {view.name}", str(view.key))}
        yield from (Trouble(Level.ATTENTION, text) for text in problems if text not in told)
    if reading.problem:
        yield Trouble(Level.ATTENTION, f"connections and rates are old: the kernel cannot be read: {reading.problem}")


def _headline(own: Sequence[Standing], troubles: Sequence[Trouble]) -> str:
    idle = [row.view.name for row in own if row.level is Level.DOWN]
    if idle:
        return f"{idle[0]} does not serve" if len(idle) == 1 else f"{len(idle)} services do not serve"
    if troubles and troubles[0].level is Level.DOWN:
        return "fusisd does not answer"
    if troubles:
        return "1 thing is wrong" if len(troubles) == 1 else f"{len(troubles)} things are wrong"
    return "All is well" if own else "No service yet"


def standing(view: ServiceView) -> Standing:
    """How one service stands."""
    rows = tuple(sorted(view.destinations, key=lambda row: _RANKS.get(row.state, 3)))  # stable: else as they are
    bad = [row for row in rows if row.state in BAD]
    serving = sum(row.weight > 0 and row.state not in BAD for row in rows)
    level, word, text = _judged(view, rows, bad, serving)
    return Standing(view, level, word, text, serving, rows)


def _judged(
    view: ServiceView, rows: Sequence[DestinationView], bad: Sequence[DestinationView], serving: int
) -> tuple[Level, str, str]:
    if view.draining:
        return Level.WELL, "draining", "it is deleted when its connections have ended"
    if not view.applied:
        return Level.ATTENTION if serving else Level.DOWN, "not applied", view.reason
    if not rows:
        return Level.ATTENTION, "empty", "it has no destination"
    if not serving and any(row.state in PENDING for row in rows):
        return Level.ATTENTION, "checking", "no destination has passed its first check yet"
    if not serving:
        return Level.DOWN, "down", _and(view.reason or "no destination takes connections", _named(bad, len(rows)))
    if bad or view.reason:
        return Level.ATTENTION, "partly", _and(_named(bad, len(rows)), view.reason)
    if odd := [row for row in rows if row.wanted is not None and row.wanted != row.weight]:
        return Level.ATTENTION, "partly", f"the kernel has another weight than is wanted: {_names(odd)}"
    return Level.WELL, "up", ""


def _and(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


def _named(bad: Sequence[DestinationView], of: int) -> str:
    """`2 of 4 destinations fail: rs1 (connection refused), rs2 (timeout)`."""
    return f"{len(bad)} of {of} {'destination' if of == 1 else 'destinations'} failing: {_names(bad)}" if bad else ""


def _names(rows: Sequence[DestinationView]) -> str:
    named = [f"{row.name} ({row.reason})" if row.reason else row.name for row in rows[:NAMED]]
    return ", ".join(named) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
