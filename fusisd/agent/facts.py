"""Looking at this server for the doctor: switches, devices, addresses, rules, the way to the balancer. Needs no agent.

Does not: judge what it sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from fusisd.agent import host, orders, prepare
from fusisd.agent.config import Config, ServiceConfig
from fusisd.agent.doctor import Facts
from fusisd.agent.prepare import Made, Place, Vip
from fusisd.agent.probe import failure
from fusisd.errors import FusisError

CONF = Path("/proc/sys/net/ipv4/conf")
PING_S = 1.0
_SWITCHES = ("arp_ignore", "arp_announce", "rp_filter")
_ELSEWHERE = {4: "198.51.100.1", 6: "2001:db8::1"}  # RFC 5737, RFC 3849: nobody's, so their way is that of any client's


def look(config: Config, services: Mapping[str, tuple[ServiceConfig, Vip | None]]) -> Facts:
    """All that the doctor asks for. Raises StartupError, HostError."""
    address = host.own_address(config.iface, config.balancers[0])
    place = host.place(address, config.balancers[0])
    links = host.rows("address", "show")
    wanted = prepare.steps(services.values(), place)
    return Facts(
        place=place,
        switches=_switches(),
        devices={link["ifname"]: "UP" in link.get("flags", []) for link in links},
        addresses=_addresses(links),
        present=host.present([step.identity for step in wanted if isinstance(step, Made)]),
        mss={vip.address: _mss(vip.address) for _, vip in services.values() if vip is not None},
        failures=asyncio.run(_failures(services, place)),
        full_packets=reaches(config.balancers[0], place.mtu),
        gateways={number: bool(_ways(number)) for number in (4, 6)},
        serf=_serf(config),
    )


def _switches() -> dict[str, int]:
    found = {}
    for path in CONF.glob("*/*"):
        if path.name in _SWITCHES:
            with contextlib.suppress(OSError, ValueError):
                found[f"{path.parent.name}/{path.name}"] = int(path.read_text())
    return found


def _addresses(links: list[dict[str, object]]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for link in links:
        rows = link.get("addr_info")
        for row in rows if isinstance(rows, list) else ():
            if "local" in row:
                found.setdefault(row["local"], set()).add(str(link["ifname"]))
    return {address: frozenset(devices) for address, devices in found.items()}


def _ways(number: int, *words: str) -> list[dict[str, object]]:
    with contextlib.suppress(host.HostError):
        return host.rows("route", "get", _ELSEWHERE[number], *words, family=number)
    return []


def _mss(vip: str) -> int | None:
    """The MSS that an answer from the VIP to somebody elsewhere carries."""
    for row in _ways(prepare.family(vip), "from", vip):
        metrics = row.get("metrics")
        for metric in metrics if isinstance(metrics, list) else ():
            if "advmss" in metric:
                return int(metric["advmss"])
    return None


async def _failures(services: Mapping[str, tuple[ServiceConfig, Vip | None]], place: Place) -> dict[str, str]:
    found = {}
    for name, (service, vip) in services.items():
        if service.check.kind != "none":
            found[name] = await failure(service.check, prepare.checked_at(service, vip, place.address), service.port)
    return found


def _serf(config: Config) -> str:
    try:
        found = orders.ask(config.orders, {"do": "status"})
    except FusisError as error:
        return str(error)
    return "" if found.get("joined") else "the agent runs, and no balancer in Serf's list is alive"


def reaches(balancer: str, mtu: int) -> bool | None:
    """Whether a packet of this size, not to be fragmented, reaches the balancer; None when it answers no small one either.

    None also without CAP_NET_RAW.
    """
    try:
        if not _echo(balancer, 64):
            return None
        return _echo(balancer, min(mtu, 65535))  # loopback's 65536 is more than an IPv4 packet holds (RFC 791)
    except PermissionError:
        return None
    except OSError:
        return False  # EMSGSIZE: the interface itself does not take it


def _echo(balancer: str, size: int) -> bool:
    """One ICMP echo whose IP packet has this size (RFC 792, RFC 4443), tried twice. Raises OSError."""
    six = ":" in balancer
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        level, option = (socket.IPPROTO_IPV6, 23) if six else (socket.IPPROTO_IP, 10)  # IPV6_MTU_DISCOVER, IP_MTU_DISCOVER
        sock.setsockopt(level, option, 3)  # IP_PMTUDISC_PROBE: as large as the interface, whatever was learnt before
        sock.settimeout(PING_S / 2)
        mark = os.urandom(8)
        body = mark + bytes(size - (40 if six else 20) - 8 - len(mark))
        for sequence in range(2):
            head = struct.pack("!BBHHH", 128 if six else 8, 0, 0, os.getpid() & 0xFFFF, sequence)
            packet = head + body
            if not six:
                packet = head[:2] + struct.pack("!H", _checksum(packet)) + head[4:] + body
            sock.sendto(packet, (balancer, 0))
            if _answered(sock, mark, 0 if six else 20, 129 if six else 0):
                return True
    return False


def _answered(sock: socket.socket, mark: bytes, offset: int, kind: int) -> bool:
    with contextlib.suppress(TimeoutError):
        for _ in range(64):
            data = sock.recv(65536)
            if data[offset : offset + 1] == bytes([kind]) and data[offset + 8 : offset + 16] == mark:
                return True
    return False


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - int(total)
