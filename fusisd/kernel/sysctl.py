"""The kernel switches that IPVS needs, as a table with reasons, and their writing with the previous value noted first.

Written through /proc/sys, in the table's order. A switch that has its value already is left alone and not noted.
Does not: decide when (host.py does), or undo (`previous` values are in the local store for that).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from fusisd.errors import FusisError

PROC_SYS = Path("/proc/sys")


class SysctlError(FusisError):
    """A switch could not be set; `str()` says which, to what, and why."""


class When(Enum):
    """What a row is for."""

    ALWAYS = auto()
    MASQUERADE = auto()
    IPV6 = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """One switch. `name` may hold `*` for every interface. It applies to kernels before `until`; `only_from` guards
    a change that is right only from one value."""

    name: str
    value: str
    when: When
    reason: str
    until: tuple[int, int] | None = None
    only_from: str | None = None


TABLE = (
    Row("net/ipv4/ip_forward", "1", When.ALWAYS, "the kernel forwards for NAT and tunnels only when told to"),
    Row("net/ipv4/conf/all/send_redirects", "0", When.ALWAYS, "one-armed: no redirect that sends a client past us"),
    Row("net/ipv4/conf/*/send_redirects", "0", When.ALWAYS, "the kernel takes all OR the interface's own"),
    Row("net/ipv4/vs/expire_nodest_conn", "1", When.ALWAYS, "connections of a deleted destination end at once"),
    Row("net/ipv4/vs/expire_quiescent_template", "1", When.ALWAYS, "persistence does not hold a client on weight 0"),
    Row(
        "net/ipv4/vs/conn_reuse_mode",
        "0",
        When.ALWAYS,
        "a reused client port costs 1 s before Linux 5.9 (kubernetes#70747); from 5.9 on the default is right (#93297)",
        until=(5, 9),
    ),
    Row("net/ipv4/vs/conntrack", "1", When.MASQUERADE, "IPVS packets skip NAT otherwise: measured 0 of 4 connections"),
    Row(
        "net/ipv6/conf/*/accept_ra",
        "2",
        When.IPV6,
        "before forwarding, which else makes the host drop its own default route (ip-sysctl.rst)",
        only_from="1",
    ),
    Row("net/ipv6/conf/all/forwarding", "1", When.IPV6, "as ip_forward, for IPv6 services"),
)


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """(major, minor) of a `uname -r`, by default of the kernel we run on."""
    match = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def rows(masquerade: bool, ipv6: bool, version: tuple[int, int]) -> tuple[Row, ...]:
    """The rows that apply, in the order in which they are written."""
    wanted = {When.ALWAYS} | ({When.MASQUERADE} if masquerade else set()) | ({When.IPV6} if ipv6 else set())
    return tuple(row for row in TABLE if row.when in wanted and (row.until is None or version < row.until))


def apply(row: Row, note: Callable[[str, str], None], root: Path = PROC_SYS) -> None:
    """Set one row; `note(name, previous)` is called before each change. Raises SysctlError."""
    for path in _paths(row, root):
        name = str(path.relative_to(root)).replace("/", ".")
        try:
            previous = path.read_text().strip()
            if previous == row.value or (row.only_from is not None and previous != row.only_from):
                continue
            note(name, previous)
            path.write_text(row.value)
        except OSError as error:
            raise SysctlError(
                f"cannot set {name}={row.value} ({row.reason}): {error.strerror}; set it yourself and use --no-sysctl"
            ) from None


def _paths(row: Row, root: Path) -> Iterator[Path]:
    if "*" in row.name:
        yield from sorted(root.glob(row.name))
    else:
        yield root / row.name
