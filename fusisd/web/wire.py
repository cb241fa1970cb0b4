"""What a connection's bytes pass through: the bare socket, or TLS over it. Neither ever blocks.

TLS is the standard library's SSLSocket, driven step by step; where it must read in order to write, or the other way round,
`waits_for` says so, because the socket's events alone do not.
Does not: know HTTP, phases or deadlines.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import struct
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

RECEIVE_SIZE = 16 * 1024  # a whole TLS record, so that none is left half read inside OpenSSL; a turn of the loop stays short
TLS_HANDSHAKE = b"\x16"  # the first byte of a ClientHello (RFC 8446 5.1), which no HTTP method has


class Plain:
    """A socket as it is. Its methods raise BlockingIOError when it is not ready, OSError when it is gone."""

    is_tls = False
    waits_for = 0
    """The selector's events to wait for, when they are other than one would think; else 0."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` must not block."""
        self.socket = sock

    def receive(self) -> bytes:
        """What is there, b"" at its end."""
        return self.socket.recv(RECEIVE_SIZE)

    def send(self, pieces: list[memoryview]) -> int:
        """Send of these, in order, and say how many bytes; at least one."""
        return self.socket.sendmsg(pieces)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End both directions below any protocol; the next event then finds it ended."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def reset_when_closed(self) -> None:
        """Closing shall also forget what the kernel has not sent yet."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Tls(Plain):
    """TLS over a socket, which it takes over."""

    is_tls = True

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """The server's side; no handshake yet."""
        self._tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        super().__init__(self._tls)

    def shake_hands(self) -> None:
        """Go on with the handshake; returns when it is done."""
        self._tried(self._tls.do_handshake)

    def receive(self) -> bytes:
        """See Plain."""
        return self._tried(super().receive)

    def send(self, pieces: list[memoryview]) -> int:
        """See Plain; one piece at a time, since records are made of each."""
        return self._tried(lambda: self._tls.send(pieces[0]))

    def finish(self) -> None:
        """Say so in TLS and below it."""
        with contextlib.suppress(OSError):  # it has been said, and unwrap() would wait for the client to say it too
            self._tls.unwrap()
        socket.socket.shutdown(self._tls, socket.SHUT_WR)

    def _tried(self, step: Callable[[], T]) -> T:
        self.waits_for = 0
        try:
            return step()
        except ssl.SSLWantReadError:
            self.waits_for = selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            self.waits_for = selectors.EVENT_WRITE
        raise BlockingIOError


def opens_with_tls(sock: socket.socket) -> bool | None:
    """Whether the client begins with a handshake, None when it is gone. Raises BlockingIOError while it is silent."""
    first = sock.recv(1, socket.MSG_PEEK)
    return first == TLS_HANDSHAKE if first else None
