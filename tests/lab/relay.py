"""Connections from the host to the guest over one serial line: no network device, no privileges.

Each end speaks frames over a byte stream: u32 connection, u8 kind, u16 length, data. The host end listens and opens, the
guest end (`python -m tests.lab.relay TTY NETNS PORT`) connects to 127.0.0.1:PORT inside a network namespace.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import tty
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.lab.netns import entered

_FRAME = struct.Struct("!IBH")
OPEN, DATA, END, GONE = range(4)  # END: no more data this way; GONE: the connection is over
_CHUNK = 4096
READY = b"\xffLABRELAY\xff"  # what the guest end says first, after whatever the line carried at boot

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Relay:
    """One end of the line. `connect` makes the local side of a connection that the other end opened."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: Connect | None) -> None:
        self._reader, self._writer, self._connect = reader, writer, connect
        self._open: dict[int, asyncio.Queue[bytes | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last = 0

    async def run(self) -> None:
        """Carry frames until the line ends."""
        while True:
            try:
                number, kind, length = _FRAME.unpack(await self._reader.readexactly(_FRAME.size))
                data = await self._reader.readexactly(length)
            except asyncio.IncompleteReadError:
                return
            if kind == OPEN and self._connect is not None:
                self._open[number] = asyncio.Queue()
                self._spawn(self._dial(number, self._connect))
            elif number in self._open:
                if kind == GONE:
                    self._open.pop(number).put_nowait(None)
                else:
                    self._open[number].put_nowait(data if kind == DATA else b"")

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection to the host end's listener."""
        self._last += 1
        self._open[self._last] = asyncio.Queue()
        self._send(self._last, OPEN)
        await self._carry(self._last, reader, writer)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, number: int, kind: int, data: bytes = b"") -> None:
        self._writer.write(_FRAME.pack(number, kind, len(data)) + data)

    async def _dial(self, number: int, connect: Connect) -> None:
        try:
            reader, writer = await connect()
        except OSError:
            self._open.pop(number, None)
            self._send(number, GONE)
            return
        await self._carry(number, reader, writer)

    async def _carry(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inward = asyncio.ensure_future(self._inward(self._open[number], writer))
        try:
            while data := await reader.read(_CHUNK):
                self._send(number, DATA, data)
                await self._writer.drain()
            self._send(number, END)
            await inward
        except OSError:
            inward.cancel()
        finally:
            self._open.pop(number, None)
            self._send(number, GONE)
            writer.close()

    async def _inward(self, queue: asyncio.Queue[bytes | None], writer: asyncio.StreamWriter) -> None:
        while (data := await queue.get()) is not None:
            if data:
                writer.write(data)
                await writer.drain()
            elif writer.can_write_eof():
                writer.write_eof()


async def serve_host(line: int, port: int) -> None:
    """The host end: wait for the guest's word, then listen on 127.0.0.1:`port`."""
    import socket

    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=line))
    await reader.readuntil(READY)
    relay = Relay(reader, writer, None)
    server = await asyncio.start_server(relay.accepted, "127.0.0.1", port)
    async with server:
        await relay.run()


async def _serve_guest(path: str, netns: str, port: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(fd)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0))
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(os.dup(fd), "wb", 0)
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    writer.write(READY)

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        import socket

        if not Path("/run/netns", netns).exists():
            raise ConnectionRefusedError(f"no namespace {netns} yet")
        with entered(netns):
            sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        return await asyncio.open_connection(sock=sock)

    await Relay(reader, writer, connect).run()


if __name__ == "__main__":
    asyncio.run(_serve_guest(sys.argv[1], sys.argv[2], int(sys.argv[3])))
