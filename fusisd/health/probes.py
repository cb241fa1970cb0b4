"""One probe: does a TCP connect succeed in time? Says in words why not.

Does not: count, repeat, or decide.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct

from fusisd.model import CheckTarget

# socket(7): close sends a reset, so that no probe stays 60 s in TIME_WAIT on the balancer (499 after 500 probes without it)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# Our own want, not the server's: out of descriptors, memory or local ports.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})


async def tcp_probe(target: CheckTarget, timeout_s: float) -> str:
    """ "" when the connection was made, else the reason. Raises OSError when this machine could not even ask."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in target.address else socket.AF_INET) as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (target.address, target.port))
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        if error.errno in _OURS:
            raise
        return "connection refused" if error.errno == errno.ECONNREFUSED else _words(error)
    return ""


def _words(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
