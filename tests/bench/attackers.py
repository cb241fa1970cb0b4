"""Clients that mean harm, many in one process: `python -m tests.bench.attackers PORT KIND COUNT PATH [tls]`.

Each does one thing to the server on loopback and comes back soon after it is cut off, until it is ended. Does not: measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

DRIP_S = 1.0
ARRIVE_S = 0.005  # slowhttptest's 200 a second
BACK_S = 0.1  # less, and it is this process that takes the processors
KINDS = ("silent", "header", "body", "hoard", "read", "hello", "handshake")
"""Nothing said; a header that drips; a body that drips, by the byte or by 64 kB; answers that are not read;
half a ClientHello; a whole one and nothing after it."""
FOR_TLS = ("hello", "handshake")
MIXED = "mixed"
_POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
_READ_AT_ONCE = 16
_RECEIVE_BUFFER = 64 * 1024  # a smaller one costs the sender milliseconds for each answer, but only on loopback


def unverified() -> ssl.SSLContext:
    """TLS to whoever answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def client_hello() -> bytes:
    """The first message of a handshake."""
    outgoing = ssl.MemoryBIO()
    try:
        unverified().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a partner")


class Attack:
    """What one client does, again and again."""

    def __init__(self, port: int, path: str, tls: bool) -> None:
        """`path` is of an answer that is large."""
        self._port, self._tls = port, unverified() if tls else None
        self._get = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        self._hello = client_hello()
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "silent": lambda: self._say(b""),
            "header": lambda: self._drip(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "),
            "body": lambda: self._drip(_POST),
            "hoard": lambda: self._drip(_POST, b"x" * 64_000),
            "read": self._read_slowly,
            "hello": lambda: self._say(self._hello[:50]),
            "handshake": lambda: self._say(self._hello),
        }

    async def again(self, kind: str) -> None:
        """For ever."""
        while True:
            with contextlib.suppress(OSError):
                await self.kinds[kind]()
            await asyncio.sleep(BACK_S)

    async def _connected(self, *, tls: bool, receive_buffer: int = 0) -> Streams:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
            more = {"ssl": self._tls, "server_hostname": ""} if tls and self._tls else {}
            return await asyncio.open_connection(sock=sock, limit=_READ_AT_ONCE, **more)  # type: ignore[arg-type]
        except OSError:
            sock.close()
            raise

    async def _say(self, first_words: bytes) -> None:
        """No TLS of ours: the words may be the beginning of it."""
        reader, writer = await self._connected(tls=False)
        writer.write(first_words)
        while await reader.read(_READ_AT_ONCE):
            pass
        writer.close()

    async def _drip(self, first_words: bytes, drop: bytes = b"x") -> None:
        reader, writer = await self._connected(tls=True)
        writer.write(first_words)
        while True:
            try:
                await asyncio.wait_for(reader.read(_READ_AT_ONCE), DRIP_S)
                break  # answered, or cut off
            except TimeoutError:
                writer.write(drop)
        writer.close()

    async def _read_slowly(self) -> None:
        reader, writer = await self._connected(tls=True, receive_buffer=_RECEIVE_BUFFER)
        writer.write(self._get * 20)
        while await reader.read(_READ_AT_ONCE):
            await asyncio.sleep(DRIP_S)
        writer.close()


async def main(port: int, kind: str, count: int, path: str, tls: bool) -> None:
    """Attack until ended; `mixed` is all kinds in turn."""
    attack = Attack(port, path, tls)
    every = [one for one in KINDS if tls or one not in FOR_TLS]
    kinds = itertools.cycle(every if kind == MIXED else (kind,))
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(attack.again(next(kinds)))
            await asyncio.sleep(ARRIVE_S)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:] == ["tls"]))
