"""What clients make us hold in memory: requests on their way in, answers that they do not take; a limit for all of each.

Over a limit room is made at the expense of the largest request that is not complete, and of who has been sent to the
longest: one who hoards goes, and a request of ordinary size goes on.
Does not: close anything; who is evicted closes itself at its next event (loop.py).
"""

from __future__ import annotations

from collections import Counter

from fusisd.web.connection import Connection, Limits, Phase


class Held:
    """Kept up by the loop's thread, after everything that a connection did."""

    def __init__(self, limits: Limits) -> None:
        """Nothing yet."""
        self._limits = limits
        self._requests: dict[Connection, int] = {}
        self._answers: dict[Connection, list[bytes]] = {}
        """First the one to which sending began first."""
        self._sharers: Counter[int] = Counter()
        self._received = self._unsent = 0

    def note(self, connection: Connection) -> None:
        """Count what it holds now, and make room when that is too much."""
        self._count(connection)
        while self._received > self._limits.buffered and self._refuse_largest():
            pass
        while self._unsent > self._limits.unsent:
            self._evict(next(iter(self._answers)))

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self._received -= self._requests.pop(connection, 0)
        self._release(connection)

    def _count(self, connection: Connection) -> None:
        size = connection.buffered
        self._received += size - self._requests.pop(connection, 0)
        if size:
            self._requests[connection] = size
        if connection.phase is not Phase.SENDING:
            self._release(connection)
        elif connection not in self._answers:  # until all is sent the whole of it is held
            self._keep(connection)

    def _refuse_largest(self) -> bool:
        """False when all are complete, and so in the hands of workers."""
        incomplete = [one for one in self._requests if one.phase is Phase.RECEIVING]
        if not incomplete:
            return False
        self._evict(max(incomplete, key=self._requests.__getitem__))
        return True

    def _evict(self, connection: Connection) -> None:
        connection.evict()
        self.forget(connection)

    def _keep(self, connection: Connection) -> None:
        pieces = self._answers[connection] = connection.wfile.holds
        for piece in pieces:
            self._sharers[id(piece)] += 1
            if self._sharers[id(piece)] == 1:
                self._unsent += len(piece)

    def _release(self, connection: Connection) -> None:
        for piece in self._answers.pop(connection, ()):
            self._sharers[id(piece)] -= 1
            if not self._sharers[id(piece)]:
                del self._sharers[id(piece)]
                self._unsent -= len(piece)
