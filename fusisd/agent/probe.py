"""The server's own check of a service: does it answer here? By TCP, or by one HTTP request.

A connection refused is an answer, too, and comes at once: the process is dead. So probes follow each other fast, for the
loopback costs nothing, and faster when the last result disagrees with what is believed.
Does not: decide what a result means (states.py does).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from dataclasses import dataclass

from fusisd.errors import Invalid

INTERVAL_S = 0.2
FAST_INTERVAL_S = 0.05
TIMEOUT_S = 1.0
FALL = 2
_HTTP = re.compile(r"http(?::(\d{1,5}))?:(/[!-~]*)\Z")
_STATUS = re.compile(rb"HTTP/1\.[01] ([23])\d\d[ \r]")


@dataclass(frozen=True, slots=True)
class Check:
    """`kind`: tcp, http or none. `port` None: the service's own."""

    kind: str = "tcp"
    path: str = ""
    port: int | None = None


def parse_check(text: str, place: str = "check") -> Check:
    """`tcp`, `none`, `http:/path`, `http:PORT:/path`. Raises Invalid."""
    if text in ("tcp", "none"):
        return Check(text)
    match = _HTTP.match(text)
    if match is None or not 0 < int(match[1] or 1) < 65536:
        raise Invalid(f"{place} {text!r} must be tcp, none, http:/path or http:PORT:/path", place)
    return Check("http", match[2], int(match[1]) if match[1] else None)


async def failure(check: Check, address: str, port: int) -> str:
    """Why the service does not answer at this address of ours; "" when it does."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _ask(check, address, check.port or port)
    except TimeoutError:
        return f"no answer within {TIMEOUT_S:g} s"
    except OSError as error:
        return os.strerror(error.errno).lower() if error.errno else str(error)  # asyncio's own text names address and port


async def _ask(check: Check, address: str, port: int) -> str:
    reader, writer = await asyncio.open_connection(address, port, limit=4096)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset: nothing stays in TIME_WAIT
    try:
        if check.kind == "tcp":
            return ""
        host = f"[{address}]" if ":" in address else address
        writer.write(f"GET {check.path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode("ascii"))
        head = b""
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n")
        if _STATUS.match(head):
            return ""
        return f"answers {head.decode('latin-1').strip()[:60]!r}" if head else "closes without an answer"
    finally:
        writer.transport.abort()
