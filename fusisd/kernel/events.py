"""A doorbell that the kernel rings when an address or an interface comes, goes or changes (rtnetlink(7)).

What was said is not read beyond the fact: the list of addresses is the truth, and a lost event (ENOBUFS) rings as well.
Does not: look at addresses, or decide how often a ring is heeded (host.py does).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR of <linux/rtnetlink.h>
_READS = 64  # messages taken in one go: under a storm the loop has other work, too


class AddressEvents:
    """A netlink socket on the running event loop."""

    def __init__(self, ring: Callable[[], None]) -> None:
        """`ring()` is called from the loop, once for all that had come. Raises OSError."""
        self._ring = ring
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            self._sock.bind((0, _GROUPS))
        except BaseException:
            self._sock.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self._read)

    def close(self) -> None:
        """No ring any more."""
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> None:
        for _ in range(_READS):
            try:
                self._sock.recv(1)  # the rest of the datagram is dropped
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        self._ring()
