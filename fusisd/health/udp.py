"""UDP: what comes back for a datagram?

Without an expected answer silence passes, since most UDP services say nothing to what they do not understand: only an
ICMP port unreachable fails then, which a dead host does not send. Say what to expect where it is possible.
Does not: repeat a datagram that may have been lost; that is what `fall` is for.
"""

from __future__ import annotations

import asyncio
import socket

from fusisd.health.asking import Failed, Way, opened, shown
from fusisd.model import CheckTarget

MOST = 65535


async def ask(target: CheckTarget, way: Way) -> None:
    """Returns when the answer was as expected. Raises Failed, OSError."""
    try:
        sent, expected = bytes.fromhex(target.spec.send), bytes.fromhex(target.spec.expect)
    except ValueError:
        raise Failed("the check itself is wrong: send and expect must be hex") from None
    loop = asyncio.get_running_loop()
    with opened(target, socket.SOCK_DGRAM, way) as sock:
        await loop.sock_connect(sock, (target.address, target.port))
        await loop.sock_sendall(sock, sent)
        answer = await loop.sock_recv(sock, MOST)
    if expected not in answer:
        raise Failed(f"answered {shown(answer)} without what is expected")
