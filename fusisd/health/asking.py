"""What all probes share: a socket on the way to the target, one deadline, and whose fault a failure is.

`Failed` is the server's; an OSError that `ours` knows is this machine's and says nothing of the server.
Does not: speak a protocol.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fusisd.model import CheckTarget

# socket(7): close sends a reset, so that no probe stays 60 s in TIME_WAIT on the balancer (499 after 500 probes without it)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# ip(7) IP_BIND_ADDRESS_NO_PORT, IPv6 too: the port is chosen by connect, which takes them in turn (RFC 6056, algorithm 4).
# bind's are random, so now and then one whose IPVS entry still lives: it would lead a path check to another server.
_BIND_ADDRESS_NO_PORT = 24

# Out of descriptors, memory, processes or local ports; no IPv6 here; the local firewall or SO_MARK not allowed (EPERM).
_OURS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EAFNOSUPPORT}
    | {errno.EPERM}
)

LATE_S = 0.05


class Failed(Exception):
    """The target did not pass; `str()` says in a few words why not, and is never empty."""


class Late(OSError):
    """The loop came late to the deadline: perhaps the answer was there and nobody looked."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a probe's packets leave: with this mark (SO_MARK, needs CAP_NET_ADMIN; 0 = none), from this address ("" = any)."""

    mark: int = 0
    source: str = ""


DIRECT = Way()


@asynccontextmanager
async def deadline(timeout_s: float) -> AsyncIterator[None]:
    """Limit what is inside. Raises TimeoutError, or Late when the loop was held up by something else.

    When the time is over, what arrived meanwhile is looked at first: asyncio.timeout alone would fail a server whose
    answer waits in the socket while the loop does something else (a turn of control) across the deadline.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    try:
        async with asyncio.timeout(None) as limit:
            # Sockets are polled, then timers run, then this turn's wake-ups: one turn later is after the wake-ups.
            timer = loop.call_at(end_s, limit.reschedule, end_s)
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError:
        if limit.expired() and loop.time() - end_s > LATE_S:
            raise Late(errno.EBUSY, "this machine was too busy to look for the answer in time") from None
        raise


def opened(target: CheckTarget, kind: socket.SocketKind, way: Way) -> socket.socket:
    """A socket for the target, not yet connected; the caller closes it. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in target.address else socket.AF_INET, kind)
    try:
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if way.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, way.mark)
        if way.source and kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        if way.source:
            sock.bind((way.source, 0))
    except OSError:
        sock.close()
        raise
    return sock


def ours(error: OSError) -> bool:
    """This machine could not ask. TLS errors carry numbers of OpenSSL in `errno`, and are the server's."""
    return not isinstance(error, ssl.SSLError) and (isinstance(error, Late) or error.errno in _OURS)


def words(error: OSError) -> str:
    """Why the server failed, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "closed the connection during the TLS handshake"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or type(error).__name__).replace('_', ' ').lower()}"
    return os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__


def shown(data: bytes) -> str:
    """The beginning of what a server sent, harmless in a log."""
    return repr(data[:32])[1:]
