"""Which of this host's addresses packets to another host would carry.

Does not: send any.
"""

from __future__ import annotations

import socket


def source_towards(address: str) -> str:
    """The source address that the kernel would choose; asked by a UDP socket's connect, which sends nothing. Raises
    OSError: no way leads there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))  # discard; any port would do
        source: str = sock.getsockname()[0]
        return source
