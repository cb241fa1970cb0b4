"""Asking the wire who answers for an address, before a VIP of that address is made: ARP probe and neighbour solicitation.

RFC 5227 waits up to 5 s for the silence that means free; an operator's command waits one second and asks three times.
A probe (sender 0.0.0.0) writes nothing into the neighbours' tables. What does not answer is not proven absent: a real
server with the VIP on lo and `arp_ignore=1` keeps silent, and shall.
Does not: know this host's own addresses (host.py asks only for others).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from fusisd.errors import FusisError
from fusisd.kernel.ethernet import (
    advertiser,
    arp_claimant,
    arp_probe,
    arp_socket,
    hardware_address,
    icmp6_socket,
    solicitation,
    solicited_node,
)

TRIES = 3
PATIENCE_S = 0.3  # for each try; a neighbour on the LAN answers within milliseconds


class NeighbourError(FusisError):
    """The wire could not be asked; `str()` is one sentence."""


async def answers(iface: str, address: str) -> str:
    """The Ethernet address of the neighbour that answers for this address, as `02:00:00:00:00:01`; "" when none does
    within a second. Needs CAP_NET_RAW. Raises NeighbourError."""
    try:
        mac = hardware_address(iface)
        if mac is None:
            return ""  # no neighbours that could answer
        if ":" in address:
            return await _solicit(iface, mac, address)
        with arp_socket(iface) as sock:
            frame = arp_probe(mac, address)
            return await _ask(sock, lambda: sock.send(frame), lambda heard: arp_claimant(heard, address), mac)
    except OSError as error:
        why = f"{error.strerror or error} (needs CAP_NET_RAW, and {iface} up with an address)"
        raise NeighbourError(f"cannot ask on {iface} who answers for {address}: {why}") from None


async def _solicit(iface: str, mac: bytes, address: str) -> str:
    """The source is an address of ours, chosen by the kernel, so the answer comes to us alone."""
    message = solicitation(mac, address)
    to = (solicited_node(address), 0, 0, socket.if_nametoindex(iface))
    with icmp6_socket(iface) as sock:
        return await _ask(sock, lambda: sock.sendto(message, to), lambda heard: advertiser(heard, address), mac)


async def _ask(
    sock: socket.socket, send: Callable[[], object], heard: Callable[[bytes], bytes | None], own: bytes
) -> str:
    loop = asyncio.get_running_loop()
    for _ in range(TRIES):
        send()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    mac = heard(await loop.sock_recv(sock, 2048))
                    if mac is not None and mac != own:
                        return mac.hex(":")
                    await asyncio.sleep(0)  # sock_recv gives way only when nothing waits: the limit must be able to end it
        except TimeoutError:
            continue
    return ""
