"""ARP and IPv6 neighbour discovery: the messages as bytes, and the raw sockets that carry them.

Does not: decide when to send, or wait for an answer.
"""

from __future__ import annotations

import socket
import struct

ETH_P_ARP = 0x0806  # <linux/if_ether.h>
_ARPHRD_ETHER = 1  # <linux/if_arp.h>
_BROADCAST = b"\xff" * 6
_ARP_HEAD = struct.Struct("!HHBBH")  # hardware, protocol, their sizes, operation
_REQUEST = _ARP_HEAD.pack(1, 0x0800, 6, 4, 1)
ALL_NODES = "ff02::1"
_NS, _NA, _OVERRIDE = 135, 136, 0x20000000  # RFC 4861 4.3, 4.4
_SOURCE_LINK, _TARGET_LINK = 1, 2  # RFC 4861 4.6.1
_ICMP6_FILTER = 1  # <linux/icmpv6.h>


def gratuitous_arp(mac: bytes, vip: str) -> bytes:
    """The Ethernet frame of an ARP request of the VIP for itself (RFC 5227 3)."""
    address = socket.inet_pton(socket.AF_INET, vip)
    return _arp_request(mac, address, address)


def arp_probe(mac: bytes, address: str) -> bytes:
    """The frame that asks who has an address without claiming one: sender 0.0.0.0 (RFC 5227 1.1)."""
    return _arp_request(mac, bytes(4), socket.inet_pton(socket.AF_INET, address))


def _arp_request(mac: bytes, sender: bytes, target: bytes) -> bytes:
    return _BROADCAST + mac + struct.pack("!H", ETH_P_ARP) + _REQUEST + mac + sender + bytes(6) + target


def arp_claimant(frame: bytes, address: str) -> bytes | None:
    """The hardware address that uses this address, by an ARP packet of either kind (RFC 5227 2.1.1); None: not said."""
    arp = frame[14:]
    if len(arp) < 28 or arp[:6] != _REQUEST[:6] or arp[14:18] != socket.inet_pton(socket.AF_INET, address):
        return None
    return arp[8:14]


def unsolicited_advertisement(mac: bytes, vip: str) -> bytes:
    """The ICMPv6 message, its checksum left to the kernel."""
    return _neighbour(_NA, _OVERRIDE, vip, _TARGET_LINK, mac)


def solicitation(mac: bytes, address: str) -> bytes:
    """The ICMPv6 message that asks for an address's neighbour, its checksum left to the kernel."""
    return _neighbour(_NS, 0, address, _SOURCE_LINK, mac)


def _neighbour(kind: int, flags: int, target: str, option: int, mac: bytes) -> bytes:
    head = struct.pack("!BBHI", kind, 0, 0, flags) + socket.inet_pton(socket.AF_INET6, target)
    return head + struct.pack("!BB", option, 1) + mac


def solicited_node(address: str) -> str:
    """The multicast group in which the owner of an address listens for solicitations (RFC 4291 2.7.1)."""
    low = socket.inet_pton(socket.AF_INET6, address)[13:]
    return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + low)


def advertiser(message: bytes, address: str) -> bytes | None:
    """The hardware address that an advertisement of this address names; None: it is none, or names none."""
    if len(message) < 24 or message[0] != _NA or message[8:24] != socket.inet_pton(socket.AF_INET6, address):
        return None
    options = message[24:]
    while len(options) >= 8 and options[1]:
        if options[0] == _TARGET_LINK:
            return options[2:8]
        options = options[8 * options[1] :]
    return None


def hardware_address(iface: str) -> bytes | None:
    """The interface's Ethernet address; None when it has none (lo, a tunnel), so no neighbours either. Needs
    CAP_NET_RAW; raises OSError. Asked of a socket, which sees its own network namespace; /sys shows the mounter's."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((iface, 0))
        _name, _protocol, _type, hardware, mac = sock.getsockname()
    return mac if hardware == _ARPHRD_ETHER and len(mac) == 6 and any(mac) else None


def arp_socket(iface: str) -> socket.socket:
    """A socket for whole frames that hears the interface's ARP, not blocking. Needs CAP_NET_RAW; raises OSError."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
    try:
        sock.bind((iface, ETH_P_ARP))
    except BaseException:
        sock.close()
        raise
    return sock


def icmp6_socket(iface: str) -> socket.socket:
    """A socket for ICMPv6 on this interface that hears only neighbour advertisements, not blocking. Needs CAP_NET_RAW;
    raises OSError."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    try:
        blocked = bytearray(b"\xff" * 32)  # a bit for each type, in 32-bit words of the host's order
        word, bit = divmod(_NA, 32)
        struct.pack_into("=I", blocked, word * 4, 0xFFFFFFFF ^ (1 << bit))
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, iface.encode() + b"\0")
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)  # receivers drop any other hop limit
    except BaseException:
        sock.close()
        raise
    return sock
