"""What happened, as values in a ring of the last so many: pure.

An id is the epoch of the run of fusisd that made it (the ring is in memory, a restart begins another) and a number in it:
`193f2a7b4c0-17`. A cursor is the id of the last event that a reader has seen, so that nothing is read twice, and a reader
that was too slow, or met another run, is told that it missed something.
Any thread may read while the loop adds: a slot holds one frozen value, written before the end moves past it, and one that
was overwritten under a reader has another number.
Does not: read a clock, write the log (journal.py does), or outlive the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from fusisd.errors import Invalid

SIZE = 20_000


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `wall_s` is seconds since 1970, `at_s` monotonic; `kind` is one of docs/api.md; `text` what
    happened, `cause` why, `who` on whose word (commands only). "" = none."""

    epoch: str
    number: int
    wall_s: float
    at_s: float
    kind: str
    text: str
    service: str = ""
    destination: str = ""
    node: str = ""
    cause: str = ""
    who: str = ""
    level: int = logging.INFO

    @property
    def id(self) -> str:
        """What a cursor is made of."""
        return f"{self.epoch}-{self.number}"

    @property
    def time(self) -> str:
        """The wall clock, UTC, as ISO 8601."""
        return datetime.fromtimestamp(self.wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def concerns(self, service: str, destination: str, node: str = "") -> bool:
        """Whether it tells of this destination (or, as `destination` is "", of anything in the service), or of its node."""
        if self.service == service and service:
            return not destination or self.destination in ("", destination)
        return bool(node) and self.node == node


@dataclass(frozen=True, slots=True)
class Page:
    """Events in their order, the cursor that goes on after them, and whether some before them are lost to the reader."""

    events: tuple[Event, ...]
    next: str
    missed: bool = False


class Ring:
    """The last `size` events of one run."""

    def __init__(self, epoch: str, size: int = SIZE) -> None:
        """`epoch`: letters and digits that no other run has."""
        self.epoch, self._size = epoch, size
        self._slots: list[Event | None] = [None] * size
        self._next = 1

    @property
    def next_number(self) -> int:
        """The number of the event to add."""
        return self._next

    def add(self, event: Event) -> None:
        """Take it in; it has `next_number`. On the loop's thread only."""
        self._slots[event.number % self._size] = event
        self._next = event.number + 1

    def page(self, after: str | None, limit: int, service: str | None = None) -> Page:
        """At most `limit` events after that cursor, those of `service` alone when it is given; without a cursor the last
        ones. Raises Invalid for what is no cursor."""
        if after is None:
            last = self.last(limit, lambda event: service is None or event.service == service)
            return Page(last, f"{self.epoch}-{self._next - 1}")
        begin, missed = self._begin(after)
        found: list[Event] = []
        at = begin - 1
        for number in range(begin, self._next):
            event = self._slots[number % self._size]
            if event is None or event.number != number:
                missed = True  # overwritten while we read
                continue
            at = number
            if service is None or event.service == service:
                found.append(event)
            if len(found) == limit:
                break
        return Page(tuple(found), f"{self.epoch}-{at}", missed)

    def last(self, limit: int, wanted: Callable[[Event], bool]) -> tuple[Event, ...]:
        """The last `limit` that are wanted, in their order."""
        found: list[Event] = []
        for event in self._backwards():
            if len(found) == limit:
                break
            if wanted(event):
                found.append(event)
        return tuple(reversed(found))

    def _backwards(self) -> Iterator[Event]:
        for number in range(self._next - 1, max(0, self._next - 1 - self._size), -1):
            event = self._slots[number % self._size]
            if event is None or event.number != number:
                return  # overwritten while we read, and so is all that is older
            yield event

    def _begin(self, after: str) -> tuple[int, bool]:
        """The number to begin with, and whether earlier ones that the reader has not seen are lost."""
        epoch, dash, digits = after.rpartition("-")
        if not dash or not epoch.isalnum() or not (digits.isascii() and digits.isdigit()) or len(after) > 64:
            raise Invalid(f"{after!r} is no id of an event", "after")
        end, oldest, begin = self._next, max(1, self._next - self._size), int(digits) + 1
        if epoch != self.epoch or begin > end:
            return oldest, True
        return max(begin, oldest), begin < oldest
