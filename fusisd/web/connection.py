"""One client's connection as a state machine that never blocks, on top of cheroot's HTTPConnection.

A worker only ever sees a whole request and never touches a socket: the loop's thread receives until head and
body are complete, a worker parses it from memory, calls the application and leaves the answer in memory, the
loop's thread sends it. Each phase has one absolute deadline, set when the phase begins and never moved by
bytes that drip in:

    OPENING -- handshake done, or no TLS --> IDLE
    IDLE -- first byte --> RECEIVING -- whole request --> WORKING -- answer --> SENDING -- all sent --> IDLE
    SENDING -- all sent, closing --> LINGERING -- client closes --> CLOSED

OPENING is there when we have a certificate: the first byte says whether the client begins with TLS.
Does not: know the selector, other connections, or start threads.
"""

from __future__ import annotations

import io
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from cheroot.server import HTTPConnection, HTTPRequest
from cheroot.wsgi import Gateway_10

from fusisd.web import http1
from fusisd.web.entry import UNIX, Entry
from fusisd.web.wire import Plain, Tls, opens_with_tls

_SEND_PIECES = 64  # far below IOV_MAX (1024)
_MISDIRECTED = "ask by an address or localhost, or start fusisd with --host-name for this name"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each phase may last and how much may be held."""

    handshake_s: float = 5.0
    request_s: float = 5.0
    idle_s: float = 15.0
    queue_s: float = 5.0
    write_s: float = 10.0
    linger_s: float = 1.0
    connections: int = 1024
    per_peer: int = 64
    """See Entry.limits for whom it is not."""
    changes: int = 64
    """Requests that change something and wait for a worker; the next is told to come again."""
    buffered: int = 16 * 1024 * 1024
    """Bytes of requests held in memory for all connections together."""
    unsent: int = 32 * 1024 * 1024
    """Bytes of answers held in memory because clients do not take them; what several share counts once."""


class Phase(Enum):
    """What the connection is doing, and so who owns it: a worker in WORKING, else the loop's thread."""

    OPENING = "opening"
    IDLE = "idle"
    RECEIVING = "receiving"
    WORKING = "working"
    SENDING = "sending"
    LINGERING = "lingering"
    CLOSED = "closed"


_EVENTS = {
    Phase.OPENING: selectors.EVENT_READ,
    Phase.IDLE: selectors.EVENT_READ,
    Phase.RECEIVING: selectors.EVENT_READ,
    Phase.LINGERING: selectors.EVENT_READ,
    Phase.SENDING: selectors.EVENT_WRITE,
    Phase.WORKING: 0,
}


class Request(HTTPRequest):
    """cheroot's parser; its error answers become JSON."""

    def read_request_headers(self) -> bool:
        """Also close when the client says `Connection: Close`, which cheroot compares by case."""
        understood = bool(super().read_request_headers())
        self.close_connection = self.close_connection or self.conn.client_closes
        return understood

    def send_headers(self) -> None:
        """Also those that no answer may lack; what the application says of the same stands."""
        said = {name.lower() for name, _ in self.outheaders}
        self.outheaders += [field for field in http1.SECURITY if field[0].lower() not in said]
        super().send_headers()

    def simple_response(self, status: str, msg: str = "") -> None:
        """Answer an error with JSON and end the connection."""
        self.close_connection = True
        with_body = getattr(self, "method", b"") != b"HEAD"
        self.conn.wfile.write(http1.answer(str(status), msg or str(status)[4:].lower(), with_body=with_body))


class Gateway(Gateway_10):
    """cheroot's WSGI gateway, with what only the server knows: no header can make a key `fusis.peer`."""

    def get_environ(self) -> dict[str, Any]:  # type: ignore[override]  # its stub says None
        """The environ, with `fusis.peer`: `unix` or the client's address. The scheme is `https` over TLS."""
        environ: dict[str, Any] = super().get_environ()
        connection: Connection = self.req.conn
        environ["fusis.peer"] = connection.peer
        environ["wsgi.url_scheme"] = "https" if connection.is_tls else "http"
        environ["SERVER_PORT"] = connection.local_port
        return environ


class Outbox:
    """The answer on its way: references to the bytes written, so that slow readers share one big body."""

    def __init__(self) -> None:
        """Empty."""
        self.pieces: deque[memoryview] = deque()

    def write(self, data: bytes) -> int:
        """Keep `data` to be sent; nothing is copied."""
        if data:
            self.pieces.append(memoryview(data))
        return len(data)

    @property
    def holds(self) -> list[bytes]:
        """The objects that are kept for what is still to be sent."""
        return [piece.obj for piece in self.pieces]  # type: ignore[misc]  # what write() was given

    def send(self, wire: Plain) -> None:
        """Send all. Raises BlockingIOError when the socket takes no more now, OSError when it is gone."""
        while self.pieces:
            sent = wire.send(list(islice(self.pieces, _SEND_PIECES)))
            while sent and sent >= len(self.pieces[0]):
                sent -= len(self.pieces.popleft())
            if sent:
                self.pieces[0] = self.pieces[0][sent:]


class Connection(HTTPConnection):
    """See the module. `give_back` is called by a worker when the answer is complete, with this connection."""

    RequestHandlerClass = Request

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        limits: Limits,
        entry: Entry,
        give_back: Callable[[Connection], None],
    ) -> None:
        """`sock` must not block; `peer` is `unix` or the client's address.

        HTTPConnection's own __init__ is not called: it wraps the socket in blocking files and makes reference
        cycles.
        """
        self.server: Any = None  # the lane, from the moment that a whole request is there
        self.peer = peer
        self.remote_addr = None if peer == UNIX else peer
        self.local_port = "" if peer == UNIX else str(sock.getsockname()[1])
        self.rfile = io.BytesIO()
        self.wfile = Outbox()
        self.requests_seen = 0
        self.keep = self._is_new = True
        self.evicted = False
        self.socket, self._wire = sock, Plain(sock)
        self._inbox = bytearray()
        self._request_size = 0
        self._head: http1.Head | None = None
        self._limits, self._entry = limits, entry
        self._give_back = give_back
        if entry.certificate is None or peer == UNIX:
            self._enter(Phase.IDLE, limits.request_s)
        else:
            self._enter(Phase.OPENING, limits.handshake_s)

    # What a worker calls.

    def communicate(self) -> bool:
        """Answer the one request that is in memory; true when the connection may be kept."""
        if time.monotonic() > self.deadline:
            self.wfile.write(
                http1.answer("503 Service Unavailable", "too many requests are waiting; try again later")
            )
            return False
        return bool(super().communicate())

    def close(self) -> None:
        """The worker's last word when the connection shall not be kept; the loop closes it after sending."""
        self.release(keep=False)

    def release(self, *, keep: bool) -> None:
        """Hand the connection back to the loop's thread; the worker must not touch it afterwards."""
        self.keep = keep
        self._give_back(self)

    # What the loop's thread calls.

    @property
    def client_closes(self) -> bool:
        """The request in hand is the client's last."""
        return self._head is not None and self._head.closes

    @property
    def is_read(self) -> bool:
        """The request in hand changes nothing, by its method."""
        return self._head is not None and self._head.method in (b"GET", b"HEAD", b"OPTIONS")

    @property
    def is_asking(self) -> bool:
        """It has begun a request, or was accepted a moment ago to make its first."""
        return self.phase is Phase.RECEIVING or (self._is_new and self.phase in (Phase.OPENING, Phase.IDLE))

    @property
    def is_tls(self) -> bool:
        """The client speaks TLS."""
        return self._wire.is_tls

    @property
    def events(self) -> int:
        """What to wait for, as the selector names it; 0 while a worker has it."""
        return self._wire.waits_for or _EVENTS[self.phase]

    @property
    def buffered(self) -> int:
        """Bytes of requests held in memory."""
        return len(self._inbox) + self._request_size

    def ready(self) -> None:
        """The socket has something to receive, or room to send."""
        try:
            if self.evicted:
                self.phase = Phase.CLOSED
            elif self.phase is Phase.SENDING:
                self._send()
            elif self.phase is Phase.OPENING:
                self._open()
            else:
                self._receive()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.phase = Phase.CLOSED

    def answered(self, *, keep: bool) -> None:
        """A worker gave it back: send the answer. `keep` false ends it even if the worker would keep it."""
        self.keep = self.keep and keep
        self._answer()

    def refuse(self, status: str, message: str) -> None:
        """Answer an error without asking a worker, then end the connection."""
        self._inbox.clear()
        self.keep = False
        self.wfile.write(http1.answer(status, message))
        self._answer()

    def expire(self) -> None:
        """The phase's deadline is over."""
        if self.phase is Phase.RECEIVING:
            self.refuse(
                "408 Request Timeout", f"the request was not complete after {self._limits.request_s:g} s"
            )
            return
        if self.phase is Phase.SENDING:  # or the kernel would keep what the client does not read
            self._wire.reset_when_closed()
        self.phase = Phase.CLOSED

    def evict(self) -> None:
        """Make room: forget what is held for it, and shut the socket down, so that its next event closes it.

        Closing it here could free a descriptor that is still named in the selector's present batch.
        """
        self.evicted = True
        self._inbox = bytearray()
        self.wfile.pieces.clear()
        self._wire.reset_when_closed()
        self._wire.cut()

    def _answer(self) -> None:
        """Forget the request and send what is in the outbox."""
        self.rfile, self._request_size = io.BytesIO(), 0
        self._head, self._is_new = None, False
        self._enter(Phase.SENDING, self._limits.write_s)
        self.ready()

    def _enter(self, phase: Phase, limit_s: float) -> None:
        self.phase, self.deadline = phase, time.monotonic() + limit_s

    def _open(self) -> None:
        """Plain HTTP or TLS, and the handshake as far as it goes now."""
        if not isinstance(self._wire, Tls):
            is_tls = opens_with_tls(self.socket)
            if not is_tls or self._entry.certificate is None:
                self.phase = Phase.CLOSED if is_tls is None else Phase.IDLE  # with the deadline that it has
                return
            self._wire = Tls(self.socket, self._entry.certificate.context)
            self.socket = self._wire.socket
        self._wire.shake_hands()
        self._enter(Phase.IDLE, self._limits.request_s)

    def _receive(self) -> None:
        data = self._wire.receive()
        if not data:
            self.phase = Phase.CLOSED
        elif self.phase is not Phase.LINGERING:
            self._inbox += data
            self._advance()

    def _advance(self) -> None:
        """Look for a whole request in what was received."""
        try:
            if self._head is None:
                self._begin()
        except http1.ProtocolError as error:
            self.refuse(error.status, str(error))
            return
        head = self._head
        if head is None:
            return
        if len(self._inbox) >= head.size + head.body_size:
            end = head.size + head.body_size
            self.rfile, self._request_size = io.BytesIO(head.text + self._inbox[head.size : end]), end
            del self._inbox[:end]
            self._enter(Phase.WORKING, self._limits.queue_s)

    def _begin(self) -> None:
        while self._inbox.startswith(b"\r\n"):  # RFC 9112 2.2: empty lines before a request are ignored
            del self._inbox[:2]
        if not self._inbox:
            return
        if self.phase is Phase.IDLE:
            self._enter(Phase.RECEIVING, self._limits.request_s)
        self._head = head = http1.scan(self._inbox)
        if head is None:
            return
        if not self._entry.answers_to(head.host, self.peer):
            raise http1.ProtocolError("421 Misdirected Request", f"this is not {head.host}: {_MISDIRECTED}")
        if head.expects_continue and head.body_size and len(self._inbox) == head.size:
            self._wire.send([memoryview(http1.CONTINUE)])  # the outbox is empty here, so that the order holds

    def _send(self) -> None:
        self.wfile.send(self._wire)
        if self.keep:
            self._enter(Phase.IDLE, self._limits.idle_s)
            self._advance()
        else:
            # Closing with bytes unread would reset the connection and take our answer away from the client
            # (RFC 9112 9.6).
            self._wire.finish()
            self._enter(Phase.LINGERING, self._limits.linger_s)
