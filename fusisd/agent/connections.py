"""What connections a service has on this server: who leaves waits for them.

Does not: see those of another network namespace, as a container's are.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from pathlib import Path

_OPEN = {"01", "03", "04", "08", "09", "0B"}
"""ESTABLISHED, SYN_RECV, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING (include/net/tcp_states.h)."""
_HEARS = "05"  # FIN_WAIT2: all is said; while a process has the socket (it has an inode) it may still read


def is_here(address: str) -> bool:
    """Whether this network namespace has the address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True


def count(ports: Collection[int]) -> int:
    """How many TCP connections on these ports of ours have something to send or to hear (/proc/net/tcp, proc(5))."""
    wanted = {f"{port:04X}" for port in ports}
    found = 0
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        rows = (words for words in map(str.split, lines) if words[1].rpartition(":")[2] in wanted)
        found += sum(words[3] in _OPEN or (words[3] == _HEARS and words[9] != "0") for words in rows)
    return found
