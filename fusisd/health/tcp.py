"""TCP: does a connect succeed?

Does not: send anything.
"""

from __future__ import annotations

import asyncio
import socket

from fusisd.health.asking import Way, opened
from fusisd.model import CheckTarget


async def ask(target: CheckTarget, way: Way) -> None:
    """Returns when the connection was made. Raises OSError."""
    with opened(target, socket.SOCK_STREAM, way) as sock:
        await asyncio.get_running_loop().sock_connect(sock, (target.address, target.port))
