"""Addresses of the host, through iproute2: what is there, and VIPs put there and taken away.

A VIP is a /32 or /128. IPv6 ones are added deprecated (`preferred_lft 0`), or the kernel would choose them as the source
of the balancer's own packets, health checks among them (seen 2026-11), and without duplicate detection, which would leave
them unusable for a second.
Does not: know which addresses are ours (host.py does).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any

from fusisd.kernel.command import CommandError, run


def present() -> dict[str, str]:
    """Every address of the host with the interface that has it. Raises CommandError."""
    return {
        str(ipaddress.ip_address(row["local"])): link["ifname"]
        for link in _links([])
        for row in link.get("addr_info", [])
        if "local" in row
    }


def primary(iface: str) -> list[str]:
    """The interface's own addresses (not VIPs, not link-local), IPv4 first. Raises CommandError: no such interface."""
    rows = [row for link in _links(["dev", iface]) for row in link.get("addr_info", [])]
    own = [row for row in rows if row.get("scope") == "global" and row.get("prefixlen") not in (32, 128)]
    return [row["local"] for row in sorted(own, key=lambda row: str(row["family"]))]


def add(iface: str, vips: Iterable[str]) -> None:
    """Put these VIPs on the interface, all in one process. Raises CommandError."""
    lines = []
    for vip in vips:
        options = " nodad preferred_lft 0" if ":" in vip else ""
        lines.append(f"address add {vip}/{_prefix(vip)} dev {iface}{options}")
    _batch(lines)


def remove(vips: Mapping[str, str]) -> None:
    """Take these VIPs (address: interface) away. Raises CommandError."""
    _batch([f"address delete {vip}/{_prefix(vip)} dev {iface}" for vip, iface in vips.items()])


def _prefix(vip: str) -> int:
    return 128 if ":" in vip else 32


def _batch(lines: list[str]) -> None:
    if lines:
        run(["ip", "-batch", "-"], "\n".join(lines) + "\n")


def _links(where: list[str]) -> list[dict[str, Any]]:
    text = run(["ip", "-json", "address", "show", *where])
    try:
        links: list[dict[str, Any]] = json.loads(text)
    except ValueError:
        raise CommandError("ip -json address show: its answer is no JSON (iproute2 older than 4.13?)") from None
    return links
