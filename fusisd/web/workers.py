"""The threads that call the application: cheroot's workers, in lanes of their own queue.

There are two lanes, one for requests that read and one for requests that change: changes wait for the store
and the loop, and a read must not wait behind them. So at most half the workers wait for the loop; a change beyond them
waits for a worker, up to a number and for a time, since many writers at once share the syncs of the store's disk.
What a worker gets is a whole request in memory, what it leaves is an answer in memory.
Does not: touch sockets.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from cheroot import wsgi
from cheroot.workers import threadpool

from fusisd.web.connection import Connection, Gateway, Limits
from fusisd.web.fair import FairQueue

log = logging.getLogger(__name__)

_STOP: object = threadpool._SHUTDOWNREQUEST  # type: ignore[attr-defined]  # not in its stubs


class Workers:
    """A lane's queue and threads, in place of cheroot's pool, whose stop waits without a limit."""

    def __init__(self, lane: Lane, count: int) -> None:
        """`count` threads, made by `start`."""
        self._queue: FairQueue[object] = FairQueue()
        self._threads = [threadpool.WorkerThread(lane) for _ in range(count)]
        for number, thread in enumerate(self._threads):
            thread.name = f"fusisd-web-{lane.name}-{number}"
            thread.daemon = True  # a handler that hangs must not keep the process from ending
        self.get = self._queue.get
        self.waiting = self._queue.__len__

    def put(self, connection: Connection) -> None:
        """A whole request, which waits for a worker in its peer's turn."""
        self._queue.put(connection.peer, connection)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, deadline: float) -> bool:
        """End the threads after their requests in hand; false when some still run at `deadline`."""
        for _ in self._threads:
            self._queue.put("", _STOP)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


class Lane(wsgi.Server):
    """What cheroot's workers and requests take for their server; it never listens: the loop feeds it."""

    def __init__(self, name: str, app: Any, count: int, limits: Limits, most: float = math.inf) -> None:
        """`app` is a WSGI application, `count` the number of threads, `most` how many requests may wait for one."""
        super().__init__(("fusisd", 0), app, server_name="fusisd", timeout=int(limits.idle_s))
        self.name, self._most = name, most
        self.software = "fusisd"
        self.gateway = Gateway
        self.requests = Workers(self, count)
        # cheroot's register of statistics would keep every server for ever.
        logging.statistics.pop(f"Cheroot HTTPServer {id(self)}", None)  # type: ignore[attr-defined]

    @property
    def can_add_keepalive_connection(self) -> bool:
        """Always: the loop has its own cap."""
        return True

    @property
    def is_full(self) -> bool:
        """No further request may wait for a worker."""
        return bool(self.requests.waiting() >= self._most)

    def put_conn(self, conn: Connection) -> None:
        """A worker answered and the connection may be kept."""
        conn.release(keep=True)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Into our log instead of stderr."""
        log.log(level, "web worker message=%s", msg, exc_info=traceback)
