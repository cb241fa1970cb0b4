"""What systemd and its services say to each other: how we are, that we still go on, and the sockets it made for us.

By environment variables (sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)); without them nothing happens. They are
for one process: those that tell of sockets are taken away when they are read, or a child of ours would think them its own
(cheroot takes descriptor 3 from whoever has LISTEN_PID, whatever it says).
Does not: know what the sockets are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import MutableMapping

FIRST = 3
"""SD_LISTEN_FDS_START: the descriptors passed begin behind stdin, stdout and stderr."""


def notify(state: str) -> None:
    """`READY=1`, `STATUS=text`, `STOPPING=1` ..., to the socket that systemd names. Never waits: the loop calls it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
            sock.send(state.encode())


def watchdog_s(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """How long systemd waits for a sign of life before it ends us and starts us anew; None: it does not watch."""
    if not _ours("WATCHDOG_PID", environ, absent=True):
        return None
    micros = environ.get("WATCHDOG_USEC", "")
    return int(micros) / 1e6 if micros.isdigit() and int(micros) else None


async def keep_alive(period_s: float) -> None:
    """Say twice in a period that we go on, for ever. As a task of the event loop it falls silent when the loop is stuck."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_s / 2)


def passed_sockets(environ: MutableMapping[str, str] = os.environ) -> list[tuple[str, socket.socket]]:
    """(name, socket) of each socket that systemd passed to this very process, ours from now on; asked again, none. A name
    is what FileDescriptorName= says, else the socket unit's."""
    ours = _ours("LISTEN_PID", environ)
    number, names = environ.get("LISTEN_FDS", ""), environ.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(variable, None)
    if not ours or not number.isdigit():
        return []
    found = []
    for place in range(int(number)):
        sock = socket.socket(fileno=FIRST + place)
        sock.set_inheritable(False)  # neither serf nor ip shall hold them
        found.append((names[place] if place < len(names) else "", sock))
    return found


def _ours(variable: str, environ: MutableMapping[str, str], absent: bool = False) -> bool:
    """Whether the variable names this process."""
    said = environ.get(variable)
    return absent if said is None else said == str(os.getpid())
