"""The one thread that owns every socket of the HTTP front: accepts, receives, sends, expires, evicts, closes.

Workers hand connections back through a queue and ring an eventfd; nothing of the selector or the sockets is
shared. Within one batch of the selector a connection may close only itself: closing another one would free a
descriptor that the batch still names. To make room, another one is shut down and closes itself at its next
event.
Does not: parse requests or call the application.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterable

from fusisd.web.connection import Connection, Limits, Phase
from fusisd.web.entry import UNIX, Entry
from fusisd.web.held import Held
from fusisd.web.listeners import Bound
from fusisd.web.workers import Lane

log = logging.getLogger(__name__)

TICK_S = 0.25
LAST_WORD_S = 0.25  # or who connected just before the end would be refused, though the next process could answer
_ACCEPT_BATCH = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Loop:
    """See the module. `run` is the thread; `stop` and `give_back` may be called from any other."""

    def __init__(
        self,
        bound: Iterable[Bound],
        reads: Lane,
        changes: Lane,
        limits: Limits,
        entry: Entry,
    ) -> None:
        """`entry` is asked on the loop's thread."""
        self._bound = tuple(bound)
        self._reads, self._changes = reads, changes
        self._limits, self._entry = limits, entry
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Connection, int] = {}
        """Every open connection, oldest first, with the events it waits for."""
        self._held = Held(limits)
        self._peers: Counter[str] = Counter()
        self._returned: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop_at: float | None = None
        self._hurry_at = self._last_word_at = 0.0
        self._listening = False

    # From other threads.

    def give_back(self, connection: Connection) -> None:
        """A worker is done with this connection."""
        self._returned.put(connection)
        os.eventfd_write(self._bell, 1)

    def stop(self, deadline: float) -> None:
        """Listen no more; end when every request in hand is answered, or at `deadline` (monotonic).

        A client that does not read its answer is waited for no longer than one that is lingered for, and one that was
        accepted and has not said all of its request for LAST_WORD_S.
        """
        now = time.monotonic()
        self._hurry_at, self._last_word_at = now + self._limits.linger_s, now + LAST_WORD_S
        self._stop_at = deadline
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Free the bell; only when neither the loop's thread nor a worker runs any more."""
        os.close(self._bell)

    # The loop's thread.

    def run(self) -> None:
        """Serve until stopped."""
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        self._listen(True)
        next_tick = time.monotonic() + TICK_S
        try:
            while not self._finished():
                self._turn(max(0.0, next_tick - time.monotonic()))
                if time.monotonic() >= next_tick:
                    self._tick()
                    next_tick = time.monotonic() + TICK_S
        finally:
            for connection in list(self._watched):
                self._drop(connection)
            self._selector.close()

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        self._listen(False)
        now = time.monotonic()
        busy = (Phase.WORKING, Phase.SENDING) if now < self._hurry_at else (Phase.WORKING,)
        for connection in list(self._watched):
            if connection.phase not in busy and not (connection.is_asking and now < self._last_word_at):
                self._drop(connection)
        return not self._watched or now >= self._stop_at

    def _turn(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            match key.data:
                case Connection() as connection:
                    connection.ready()
                    self._settle(connection)
                case Bound() as bound:
                    self._accept(bound)
                case None:
                    os.eventfd_read(self._bell)
        with contextlib.suppress(queue.Empty):
            while True:
                connection = self._returned.get_nowait()
                connection.answered(keep=self._stop_at is None)
                self._settle(connection)

    def _tick(self) -> None:
        """Expire what is over its deadline, and listen again after a pause for want of descriptors."""
        now = time.monotonic()
        for connection in [c for c in self._watched if c.deadline < now and c.phase is not Phase.WORKING]:
            connection.expire()
            self._settle(connection)
        self._listen(self._stop_at is None)

    def _settle(self, connection: Connection) -> None:
        """Give the connection to whom it belongs in its present phase."""
        lane = self._reads if connection.is_read else self._changes
        if connection.phase is Phase.WORKING and lane.is_full:
            connection.refuse("503 Service Unavailable", "too many changes are waiting; try again later")
        self._held.note(connection)
        if connection.phase is Phase.CLOSED:
            self._drop(connection)
            return
        self._watch(connection, connection.events)
        if connection.phase is Phase.WORKING:
            connection.server = lane
            lane.requests.put(connection)

    def _watch(self, connection: Connection, events: int) -> None:
        watched = self._watched[connection]
        if not events and watched:
            self._selector.unregister(connection.socket)
        elif events and not watched:
            self._selector.register(connection.socket, events, connection)
        elif events != watched:
            self._selector.modify(connection.socket, events, connection)
        self._watched[connection] = events

    def _drop(self, connection: Connection) -> None:
        if connection not in self._watched:
            return
        self._watch(connection, 0)
        del self._watched[connection]
        self._held.forget(connection)
        self._peers[connection.peer] -= 1
        if not self._peers[connection.peer]:
            del self._peers[connection.peer]
        connection.socket.close()

    # New connections.

    def _listen(self, wanted: bool) -> None:
        if wanted is self._listening:
            return
        self._listening = wanted
        for bound in self._bound:
            if wanted:
                self._selector.register(bound.socket, selectors.EVENT_READ, bound)
            else:
                self._selector.unregister(bound.socket)

    def _accept(self, bound: Bound) -> None:
        if not self._listening:  # paused by another listener in the same batch
            return
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, address = bound.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._pause(error)
                    return
                continue  # the client went away meanwhile, or its network is broken (accept(2))
            self._admit(sock, address)

    def _pause(self, error: OSError) -> None:
        """Out of descriptors or memory: evict one, and listen again at the next tick instead of spinning."""
        reason = os.strerror(error.errno or 0)
        log.warning("web cannot accept reason=%s connections=%d", reason, len(self._watched))
        self._evict_oldest()
        self._listen(False)

    def _admit(self, sock: socket.socket, address: object) -> None:
        try:
            sock.setblocking(False)
            peer = UNIX
            if isinstance(address, tuple):
                peer = _plain(address[0])
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._entry.refuse_address(_plain(sock.getsockname()[0])):
                    sock.close()
                    return
            connection = Connection(sock, peer, self._limits, self._entry, self.give_back)
        except OSError:  # gone already
            sock.close()
            return
        if self._make_room(peer):
            self._watched[connection] = 0
            self._peers[peer] += 1
            self._watch(connection, connection.events)
        else:
            sock.close()

    def _make_room(self, peer: str) -> bool:
        """Evict the oldest when a cap is reached; false when all are in the hands of workers."""
        if self._peers[peer] >= self._limits.per_peer and self._entry.limits(peer):
            return self._evict_oldest(peer)
        return len(self._watched) < self._limits.connections or self._evict_oldest()

    def _evict_oldest(self, peer: str | None = None) -> bool:
        for connection in self._watched:
            if connection.phase is Phase.WORKING or connection.evicted or peer not in (None, connection.peer):
                continue
            connection.evict()
            return True
        return False


def _plain(address: str) -> str:
    """Without the zone of a link-local address."""
    return address.partition("%")[0]
