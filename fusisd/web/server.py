"""The HTTP server: cheroot's parser, gateway and workers behind a loop of our own that no client can hold up.

cheroot as it comes gives a worker to each client that sends anything and waits for its socket there, so that
a few silent clients stop it (measured: ten dripping clients, no answer in 25 s). Here the loop's thread waits
for all sockets at once, and only whole requests reach a worker. Private names of cheroot that this room
relies on are pinned by a test.
Does not: know routes, or who may do what (auth.py).
"""

from __future__ import annotations

import dataclasses
import logging
import resource
import threading
import time
from collections.abc import Iterable
from typing import Any

from fusisd.errors import StartupError
from fusisd.web.connection import Limits
from fusisd.web.entry import Entry
from fusisd.web.listeners import Bound, Listener, TcpListener, UnixListener, bind, chosen
from fusisd.web.loop import Loop
from fusisd.web.workers import Lane

__all__ = ["Limits", "Listener", "TcpListener", "UnixListener", "WebServer", "chosen"]

log = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 128


class WebServer:
    """One WSGI application on several listeners. Environ's `fusis.peer`: `unix` or the client's address."""

    def __init__(
        self,
        app: Any,
        listeners: Iterable[Listener],
        workers: int = 8,
        *,
        entry: Entry | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`workers` threads (2 or more), half for reads and half for changes; `entry` says who is let in."""
        if workers < 2:
            raise ValueError("workers must be 2 or more: reads and changes have their own")
        self._listeners = tuple(listeners)
        self._limits = _within_descriptors(limits or Limits())
        self._lanes = (
            Lane("read", app, workers // 2, self._limits),
            Lane("change", app, workers - workers // 2, self._limits, self._limits.changes),
        )
        self._entry = entry or Entry()
        self._bound: list[Bound] = []
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None

    @property
    def addresses(self) -> tuple[TcpListener | UnixListener, ...]:
        """Where it listens, with real ports; empty before `start` and after `stop`."""
        return tuple(bound.listener for bound in self._bound)

    @property
    def waiting(self) -> int:
        """How many whole requests wait for a worker."""
        return sum(lane.requests.waiting() for lane in self._lanes)

    @property
    def running(self) -> bool:
        """The thread that owns the sockets is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Listen and serve, once in a server's life. Raises StartupError when one listener cannot be had."""
        if self._loop is not None:
            raise RuntimeError("a server is started once")
        try:
            for listener in self._listeners:
                self._bound.append(bind(listener))
        except StartupError:
            self._unbind()
            raise
        self._loop = Loop(self._bound, *self._lanes, self._limits, self._entry)
        self._thread = threading.Thread(target=self._loop.run, name="fusisd-web", daemon=True)
        for lane in self._lanes:
            lane.requests.start()
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Listen no more, answer the requests in hand, end every thread; the same again is fine.

        After `timeout_s` what is left is cut off; a handler that still runs then is left to its daemon thread
        and logged.
        """
        if self._loop is None or self._thread is None:
            return
        thread, self._thread = self._thread, None
        deadline = time.monotonic() + timeout_s
        self._loop.stop(deadline)
        thread.join(timeout_s + 1.0)
        self._unbind()
        ended = [lane.requests.stop(deadline) for lane in self._lanes]
        if all(ended) and not thread.is_alive():
            self._loop.close()
        else:
            log.warning("web request still runs after_stop_s=%.1f", timeout_s)

    def _unbind(self) -> None:
        for bound in self._bound:
            bound.close()
        self._bound.clear()


def _within_descriptors(limits: Limits) -> Limits:
    """Connections leave some of the descriptors that this process may open to the rest of it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits
    return dataclasses.replace(
        limits, connections=min(limits.connections, max(1, soft - RESERVED_DESCRIPTORS))
    )
