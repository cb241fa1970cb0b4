"""The agent's signals: held back from the first moment until somebody listens to them.

One that came meanwhile would end the process as the kernel does, with Serf, tags and host left as they are: `systemctl stop`
just after a start would leave a server in the balancer's table that nobody looks after.
Does not: know what a signal leads to.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

_OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


def hold_back() -> None:
    """From now on they wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)


def listen(leave: Callable[[], None], keep: Callable[[], None], reload: Callable[[], None]) -> None:
    """SIGTERM and SIGINT: `leave`; SIGUSR2: `keep`; SIGHUP: `reload`; those that wait come at once. On a running loop."""
    loop = asyncio.get_running_loop()
    for number, call in zip(_OURS, (leave, leave, keep, reload), strict=True):
        loop.add_signal_handler(number, call)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
