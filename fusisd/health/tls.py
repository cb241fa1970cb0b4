"""The two kinds of connection that an HTTP check speaks over: as it is, and encrypted.

TLS runs over memory BIOs on the same non-blocking socket, so that closing the socket is the end of it: no transport that
lives on, no handshake in another thread.
Does not: know HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PIECE = 16384  # a TLS record; what one turn of the loop may have to parse


class Plain:
    """A connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        """The caller closes the socket."""
        self._sock, self._loop = sock, asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises OSError."""
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        """At most `PIECE` bytes; b"" at the end. Raises OSError."""
        return await self._loop.sock_recv(self._sock, PIECE)


class Tls:
    """A connected socket with TLS on it."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        """`name`: sent as SNI, and the certificate must be valid for it; "" = encrypted but not verified."""
        self._wire = Plain(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context(bool(name)).wrap_bio(self._incoming, self._outgoing, server_hostname=name or None)

    async def greet(self) -> None:
        """The handshake. Raises OSError (ssl.SSLError among them)."""
        await self._carried(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises OSError."""
        await self._carried(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        """At most `PIECE` bytes; b"" at the end, a truncated one among them. Raises OSError."""
        try:
            return await self._carried(lambda: self._tls.read(PIECE))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def _carried(self, step: Callable[[], T]) -> T:
        """The result of `step`, with the bytes it wants carried to and from the socket."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
            else:
                await self._flush()
                return result
            if data := await self._wire.receive():
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._wire.send(data)


@functools.cache
def _context(verified: bool) -> ssl.SSLContext:
    """Made once per process: reading the system's certificates takes some 20 ms."""
    context = ssl.create_default_context()
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
