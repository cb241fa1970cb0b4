"""Who tries without leave is said in the log, once a minute for each peer: else a guess at the token would fill it.

Does not: refuse anything (auth.py does).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

PERIOD_S = 60.0
MOST_PEERS = 1000


class Refusals:
    """Answers 401 and 403, by peer. Any thread may note one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[str, tuple[float, int]] = {}  # when one was told last, and how many there were since

    def note(self, peer: str, method: str, path: str, status: int) -> None:
        """One more."""
        with self._lock:
            now_s = self._clock()
            told_s, more = self._peers.get(peer, (float("-inf"), 0))
            due = now_s - told_s >= PERIOD_S
            if peer not in self._peers and len(self._peers) >= MOST_PEERS:
                del self._peers[next(iter(self._peers))]  # the one that is known for longest
            self._peers[peer] = (now_s, 0) if due else (told_s, more + 1)
        if due:
            log.warning("web refused peer=%s method=%s path=%s status=%d before=%d", peer, method, path, status, more)
