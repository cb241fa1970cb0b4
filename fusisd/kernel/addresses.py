"""Addresses of the host, through iproute2: what is there, and VIPs put there and taken away.

A VIP is a /32 or /128. IPv6 ones are added deprecated (`preferred_lft 0`), or the kernel would choose them as the source
of the balancer's own packets, health checks among them (seen 2026-11), and without duplicate detection, which would leave
them unusable for a second.
Does not: know which addresses are ours (vips.py does).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fusisd.kernel.command import CommandError, attempt, run

_FAILED = re.compile(r"Command failed -:(\d+)\Z")  # how `ip -batch -` names a line, counted from 1


def present() -> dict[str, frozenset[str]]:
    """Every address of the host with the interfaces that have it. Raises CommandError."""
    found: dict[str, set[str]] = {}
    for link in _links([]):
        for row in link.get("addr_info", []):
            if "local" in row:
                found.setdefault(row["local"], set()).add(link["ifname"])  # as inet_ntop writes it
    return {address: frozenset(ifaces) for address, ifaces in found.items()}


def ends() -> frozenset[str]:
    """The first and the broadcast address of each of the host's IPv4 networks, and the first of each IPv6 one (the routers'
    anycast address, RFC 4291 2.6.1): a range of VIPs inside such a network must not give them away. Raises CommandError."""
    found = set[str]()
    for row in (row for link in _links([]) for row in link.get("addr_info", []) if "local" in row):
        network = ipaddress.ip_interface(f"{row['local']}/{row['prefixlen']}").network
        if network.num_addresses > 2:  # a /31 or /127 has only hosts (RFC 3021, RFC 6164)
            found.add(str(network.network_address))
            found |= {str(network.broadcast_address)} if network.version == 4 else set()
    return frozenset(found)


def primary(iface: str) -> list[str]:
    """The interface's own addresses (not VIPs, not link-local), IPv4 first. Raises CommandError: no such interface."""
    rows = [row for link in _links(["dev", iface]) for row in link.get("addr_info", [])]
    own = [row for row in rows if row.get("scope") == "global" and row.get("prefixlen") not in (32, 128)]
    return [row["local"] for row in sorted(own, key=lambda row: str(row["family"]))]


def add(iface: str, vips: Iterable[str]) -> dict[str, str]:
    """Put these VIPs on the interface, all in one process; why, for those that could not be. Raises CommandError."""
    options = {True: " nodad preferred_lft 0", False: ""}
    return _batch({vip: f"address add {_net(vip)} dev {iface}{options[':' in vip]}" for vip in vips})


def remove(vips: Mapping[str, str]) -> dict[str, str]:
    """Take these VIPs (address: interface) away; why, for those that could not be. Raises CommandError."""
    return _batch({vip: f"address delete {_net(vip)} dev {iface}" for vip, iface in vips.items()})


def _net(vip: str) -> str:
    return f"{vip}/{128 if ':' in vip else 32}"


def _batch(lines: Mapping[str, str]) -> dict[str, str]:
    """Run a line for each VIP; a line that fails stops no other. What the failed ones said."""
    if not lines:
        return {}
    ended = attempt(["ip", "-force", "-batch", "-"], "\n".join(lines.values()) + "\n")
    vips, failures = list(lines), {}
    said: list[str] = []
    for line in ended.stderr.splitlines():
        if named := _FAILED.match(line):
            vip = vips[int(named[1]) - 1]
            failures[vip] = f"ip {lines[vip]}: {' '.join(said) or 'failed'}"
            said = []
        else:
            said.append(line)
    if ended.status != 0 and not failures:
        raise CommandError(f"ip -batch: {ended.said}")
    return failures


def _links(where: list[str]) -> list[dict[str, Any]]:
    text = run(["ip", "-json", "address", "show", *where])
    try:
        links: list[dict[str, Any]] = json.loads(text)
    except ValueError:
        raise CommandError("ip -json address show: its answer is no JSON (iproute2 older than 4.13?)") from None
    return links
