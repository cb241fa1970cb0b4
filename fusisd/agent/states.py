"""A service's life on its server as a table: what is, what happens, what is then; and what its tag says meanwhile.

Where `SAID` has None nothing new is known yet and the tag stays as it is: so a restart of ours withdraws nothing, and a
server that never was ready offers nothing.
Does not: wait, look or tell (agent.py does).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from fusisd.model import OfferState


class State(Enum):
    """Of one service on this server."""

    STARTING = "starting"
    PREPARING = "preparing"
    """The host is not as the method needs it."""
    WAITING = "waiting"
    """For the first result of the local check."""
    READY = "ready"
    DOWN = "down"
    DRAIN = "drain"
    MAINT = "maint"
    LEAVING = "leaving"


class Event(Enum):
    """What happens to it."""

    PREPARED = "prepared"
    UNPREPARED = "unprepared"
    PASSED = "passed"
    FAILED = "failed"
    DRAIN = "drain"
    MAINT = "maint"
    RESUME = "resume"
    LEAVE = "leave"


_ORDERED = {Event.DRAIN: State.DRAIN, Event.MAINT: State.MAINT}
_PREPARED = {Event.UNPREPARED: State.PREPARING, **_ORDERED}

TABLE: Mapping[State, Mapping[Event, State]] = {
    State.STARTING: {Event.PREPARED: State.WAITING, **_PREPARED},
    State.PREPARING: {Event.PREPARED: State.WAITING, **_ORDERED},
    State.WAITING: {Event.PASSED: State.READY, Event.FAILED: State.DOWN, **_PREPARED},
    State.READY: {Event.FAILED: State.DOWN, **_PREPARED},
    State.DOWN: {Event.PASSED: State.READY, **_PREPARED},
    State.DRAIN: {Event.RESUME: State.WAITING, Event.MAINT: State.MAINT},
    State.MAINT: {Event.RESUME: State.WAITING, Event.DRAIN: State.DRAIN},
    State.LEAVING: {},
}

SAID: Mapping[State, OfferState | None] = {
    State.STARTING: None,
    State.PREPARING: OfferState.DOWN,
    State.WAITING: None,
    State.READY: OfferState.READY,
    State.DOWN: OfferState.DOWN,
    State.DRAIN: OfferState.DRAIN,
    State.MAINT: OfferState.MAINT,
    State.LEAVING: OfferState.DRAIN,
}

CHECKED = frozenset({State.WAITING, State.READY, State.DOWN})
"""In these the local check runs."""


def after(state: State, event: Event) -> State:
    """The state after this; an event that means nothing in a state changes nothing."""
    if event is Event.LEAVE:
        return State.LEAVING
    return TABLE[state].get(event, state)
