"""Orders to a running agent over its Unix socket: one JSON line asks, one JSON line answers.

The socket stands in the state directory (0700) and is 0600: who may write there may order. Both ends are here.
Does not: carry an order out (agent.py does).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusisd.errors import FusisError, Invalid
from fusisd.fields import parsed

LIMIT_S = 5.0
SIZE_LIMIT = 1 << 20

Carry = Callable[[dict[str, Any]], dict[str, Any]]
"""Carries an order out and says what came of it. Raises FusisError."""


class NotRunning(FusisError):
    """No agent answers there."""


async def serve(path: Path, carry: Carry) -> None:
    """Take orders for ever. Raises OSError when the socket cannot be made."""
    path.unlink(missing_ok=True)  # the state directory's lock is ours: what stands there is left over
    mask = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(lambda reader, writer: _answer(reader, writer, carry), path, limit=65536)
    finally:
        os.umask(mask)
    async with server:
        await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, carry: Carry) -> None:
    with contextlib.suppress(OSError, TimeoutError, ValueError):  # ValueError: a line too long
        async with asyncio.timeout(LIMIT_S):
            line = await reader.readline()
            writer.write(json.dumps(_carried(line, carry)).encode() + b"\n")
            await writer.drain()
    writer.close()


def _carried(line: bytes, carry: Carry) -> dict[str, Any]:
    try:
        order = parsed(line.decode("utf-8", "replace"))
        if not isinstance(order, dict):
            raise Invalid("an order is an object")
        return carry(order)
    except FusisError as error:
        return {"error": str(error)}


def ask(path: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Give an order and wait for the answer. Raises NotRunning, Invalid (refused)."""
    data = b""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LIMIT_S)
            sock.connect(str(path))
            sock.sendall(json.dumps(order).encode() + b"\n")
            while not data.endswith(b"\n") and len(data) < SIZE_LIMIT and (piece := sock.recv(65536)):
                data += piece
    except OSError as error:
        raise NotRunning(f"no fusis-agent takes orders at {path} ({error.strerror or error}): is it running?") from None
    answer = parsed(data.decode("utf-8", "replace"))
    if not isinstance(answer, dict) or "error" in answer:
        raise Invalid(str(answer.get("error")) if isinstance(answer, dict) else "the agent's answer makes no sense")
    return answer
