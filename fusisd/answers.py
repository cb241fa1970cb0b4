"""Who waits for an answer, and when it is due: a command's, when its change is in the kernel and on the host.

Does not: know what was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from fusisd.ports import Snapshot

SETTLE_LIMIT_S = 3.0  # how long a command's answer waits for VIP and NAT before it tells the state as it is


class Answers:
    """The commands that wait. Lives on the loop."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._waiting: list[tuple[asyncio.Future[Snapshot], float]] = []

    @property
    def due_s(self) -> float | None:
        """When somebody has waited for long enough."""
        return min((until_s for _, until_s in self._waiting), default=None)

    def wait(self, futures: Iterable[asyncio.Future[Snapshot]], now_s: float) -> None:
        """These wait from now on."""
        self._waiting += ((future, now_s + SETTLE_LIMIT_S) for future in futures)

    def give(self, snapshot: Snapshot, settled: bool, now_s: float) -> None:
        """Answer all when their change is there, those whose time is up in any case, with a snapshot that says so."""
        told = snapshot if settled else replace(snapshot, settled=False)
        for future, until_s in self._waiting:
            if settled or now_s >= until_s:
                resolve(future, told)
        self._waiting = [row for row in self._waiting if not row[0].done()]


def resolve(waiter: asyncio.Future[Snapshot], snapshot: Snapshot) -> None:
    """Answer, unless the one who asked went away."""
    if not waiter.done():
        waiter.set_result(snapshot)
