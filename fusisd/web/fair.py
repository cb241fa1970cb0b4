"""A queue that serves those who wait in turn: who asks for much waits for itself, and the others not for it.

Sixty requests for something large by one client would otherwise hold up a monitor's one small one for seconds (measured
2026-11: `GET /healthz` behind them took 5 s; three such answers and keepalived takes the VIP away).
Does not: know what is in it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Any thread may put and get."""

    def __init__(self) -> None:
        """Empty."""
        self._waiting: dict[str, deque[T]] = {}  # by who asks; the first is served next
        self._size = 0
        self._some = threading.Condition()

    def put(self, whose: str, item: T) -> None:
        """Behind what `whose` has in it already."""
        with self._some:
            self._waiting.setdefault(whose, deque()).append(item)
            self._size += 1
            self._some.notify()

    def get(self) -> T:
        """The oldest item of whoever's turn it is; waits for one."""
        with self._some:
            while not self._size:
                self._some.wait()
            whose, items = next(iter(self._waiting.items()))
            del self._waiting[whose]
            item = items.popleft()
            if items:
                self._waiting[whose] = items  # behind the others
            self._size -= 1
            return item

    def __len__(self) -> int:
        """How many wait."""
        return self._size
