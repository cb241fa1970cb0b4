"""The only crossing between threads: HTTP workers ask, the event loop's thread answers, every wait has a limit.

A command whose time ends before the store began with it is withdrawn, so that "503, nothing was changed" is true.
Reads take the published snapshot; one that is older than reading it anew would cost is refreshed first.
Does not: decide, hold state, or know HTTP.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from fusisd.commands import Command
from fusisd.committer import Committer
from fusisd.control import Control
from fusisd.counts import Counts
from fusisd.errors import Unavailable
from fusisd.events import Ring
from fusisd.inbox import Refresh
from fusisd.ports import Foreseen, Reading, Snapshot
from fusisd.statistics import Statistics

log = logging.getLogger(__name__)

T = TypeVar("T")

SUBMIT_LIMIT_S = 8.0  # longer than control.SETTLE_LIMIT_S plus a slow disk
REFRESH_LIMIT_S = 0.2
STATISTICS_LIMIT_S = 0.5
MAX_AGE_S = 0.25
AGE_PER_COST = 20.0
"""A snapshot may be this many times older than one read of the kernel takes: readers cost a twentieth of the loop at the
most, and on a table of ordinary size what somebody just did with ipvsadm is what the next request shows."""


class _Patience(Generic[T]):
    """Readers' waiting for one kind of work of the loop: while it is late for one of them, none of the others waits at all.

    So a loop that stands still costs all readers together one wait, and their workers go on answering.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float) -> None:
        """`limit_s`: how long one may wait."""
        self._loop, self._limit_s = loop, limit_s
        self._late: concurrent.futures.Future[T] | None = None

    def wait(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """What the loop gives for it, None when it takes longer, or does already."""
        if self._late is not None and not self._late.done():
            return None
        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result(self._limit_s)
        except concurrent.futures.TimeoutError:
            self._late = future
        except concurrent.futures.CancelledError:
            pass
        return None


class Bridge:
    """Fulfils ports.Core for threads other than the loop's."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: Control,
        committer: Committer,
        statistics: Statistics,
        counts: Counts,
        clock: Callable[[], float],
    ) -> None:
        """`loop` is the loop that control, committer and statistics live on."""
        self._loop, self._control, self._committer, self._clock = loop, control, committer, clock
        self._statistics, self._counts = statistics, counts
        self._refreshing = _Patience[Snapshot](loop, REFRESH_LIMIT_S)
        self._reading = _Patience[Reading](loop, STATISTICS_LIMIT_S)
        self._closed = False

    def close(self) -> None:
        """Refuse from now on; the first step of stopping."""
        self._closed = True

    def snapshot(self) -> Snapshot:
        """The published snapshot, refreshed when it is old; at most REFRESH_LIMIT_S later, then as it is."""
        snapshot = self._control.snapshot
        max_age_s = min(MAX_AGE_S, AGE_PER_COST * self._control.read_cost_s)
        if self._closed or self._clock() - snapshot.at_s <= max_age_s:
            return snapshot
        return self._refreshing.wait(self._refreshed) or self._control.snapshot

    def statistics(self) -> Reading:
        """The counters, read first when they are old; at most STATISTICS_LIMIT_S later, then as they are."""
        statistics = self._statistics
        if self._closed or statistics.is_fresh():
            return statistics.last
        return self._reading.wait(statistics.read) or statistics.last

    def counts(self) -> Counts:
        """What happened since the start."""
        return self._counts

    def submit(self, command: Command, who: str) -> Snapshot:
        """Make a command durable and applied. Raises Refused; Unavailable means that nothing was changed."""
        return self._asked(self._committer.submit(command, who))

    def foresee(self, command: Command) -> Foreseen:
        """What a command would come to, worked out in the thread that asks. Raises Refused."""
        return self._asked(self._committer.foresee(command))()

    def _asked(self, work: Coroutine[Any, Any, T]) -> T:
        """What the committer gives for it. Raises Refused."""
        if self._closed:
            work.close()
            raise Unavailable("fusisd is stopping; nothing was changed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(SUBMIT_LIMIT_S)
        except concurrent.futures.CancelledError:
            raise Unavailable("fusisd is stopping; the change may not have been made") from None
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise Unavailable(
                "the loop or the store is busy; look before you ask again whether the change was made"
            ) from None

    @property
    def events(self) -> Ring:
        """See ports.Core."""
        return self._control.journal.ring

    def tell(self, kind: str, text: str, who: str) -> None:
        """See ports.Core."""
        self._loop.call_soon_threadsafe(partial(self._control.journal.tell, kind, text, who=who))

    async def _refreshed(self) -> Snapshot:
        waiter: asyncio.Future[Snapshot] = self._loop.create_future()
        self._control.enter(Refresh(waiter))
        return await waiter
