"""Following the member list of an agent for ever: when to list, and when to connect again.

The list is the truth and an event only a doorbell: events repeat, go missing, carry stale states and are held back for a
second or more (docs/serf.md). One stream per connection, never a second one (an agent can crash when streams are
closed while events flow); a list at each ring and 50, 200, 500 ms and 1 s after it, because the list follows a ring by up
to that; besides every 10 s. Lists take a fifth of the time at most, so a storm of events costs no more than that.
`Rings` decides and is given the time. Does not: start an agent (supervisor.py), or decide what a member means.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fusisd.serf.errors import SerfError
from fusisd.serf.session import Subscription
from fusisd.serf.values import Event, Member

DOORBELL = "fusis"
"""The user event by which an agent says: my tags changed, list again. It carries nothing that anybody believes."""

EVENTS = f"member-join,member-leave,member-failed,member-update,member-reap,user:{DOORBELL}"
RELIST_AFTER_S = (0.0, 0.05, 0.2, 0.5, 1.0)
RELIST_PERIOD_S = 10.0
PAUSE_PER_LIST = 4.0  # a list that took 40 ms is followed by the next after 160 ms at the earliest
PAUSE_LIMIT_S = 1.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class MembersSeen:
    """A member list, by name; `epoch` counts connections, so a higher one means that our agent may have been restarted."""

    members: tuple[Member, ...]
    epoch: int


@dataclass(frozen=True, slots=True)
class SerfLost:
    """The agent is not reachable now."""

    reason: str


class Source(Protocol):
    """What can be followed: SerfClient."""

    async def connect(self) -> None:
        """A new connection. Raises SerfError."""

    async def close(self) -> None:
        """End it."""

    async def members(self) -> tuple[Member, ...]:
        """The list. Raises SerfError."""

    async def stream(self, types: str = "*", limit: int = 1024) -> Subscription[Event]:
        """The events of these types. Raises SerfError."""


class Rings:
    """When the next list is due, on one connection. Times are seconds of any steady clock."""

    def __init__(self, now_s: float) -> None:
        """The first list is due at once, its series too: what rang before the stream began is not known."""
        self._due_s: list[float] = []
        self._not_before_s = now_s
        self.rang(now_s)

    def rang(self, now_s: float) -> None:
        """Something came: the series begins anew."""
        self._due_s = [now_s + after_s for after_s in RELIST_AFTER_S]

    def listed(self, began_s: float, now_s: float) -> None:
        """A list that was asked for then came now; it serves for all that was due by the time it was asked for."""
        self._due_s = [due_s for due_s in self._due_s if due_s > began_s] or [began_s + RELIST_PERIOD_S]
        self._not_before_s = now_s + min(PAUSE_PER_LIST * (now_s - began_s), PAUSE_LIMIT_S)

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next list."""
        return max(0.0, self._due_s[0] - now_s, self._not_before_s - now_s)


async def watch(source: Source, on_seen: Callable[[MembersSeen], None], on_lost: Callable[[SerfLost], None]) -> None:
    """Follow the members for ever, over as many connections as it takes; ends when cancelled.

    `on_seen` gets the first list of each connection, then each that differs, and one every 10 s all the same, because with
    time alone a list may come to mean something else; `on_lost` each loss, once. Connects again
    after 0.2 to 5 s, longer each time until a list was seen, a quarter more or less so that many do not do it together.
    """
    epoch, failures = 1, 0
    while True:
        seen, reason = await _follow(source, on_seen, epoch)
        if seen:
            epoch, failures = epoch + 1, 0
        if failures == 0:
            on_lost(SerfLost(reason))
        pause_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
        failures += 1
        await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))


async def _follow(source: Source, on_seen: Callable[[MembersSeen], None], epoch: int) -> tuple[bool, str]:
    """One connection: list whenever it is due. Whether a list was seen, and why it ended."""
    now = asyncio.get_running_loop().time
    known: tuple[Member, ...] | None = None
    told_s = 0.0
    try:
        await source.connect()
        stream = await source.stream(EVENTS, limit=1)
        rings = Rings(now())
        while not stream.over:
            if (wait_s := rings.wait_s(now())) > 0 and await stream.rung(wait_s):
                rings.rang(now())
                continue
            began_s = now()
            members = tuple(sorted(await source.members(), key=lambda member: member.name))
            if members != known or began_s - told_s >= RELIST_PERIOD_S:
                known, told_s = members, began_s
                on_seen(MembersSeen(members, epoch))
            rings.listed(began_s, now())
        return known is not None, stream.over
    except SerfError as error:
        return known is not None, str(error)
    finally:
        await source.close()
