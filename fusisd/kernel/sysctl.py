"""The kernel switches that IPVS needs, as a table with reasons, and their writing with the previous value noted first.

Written through /proc/sys, in the table's order. A switch that has its value already is left alone and not noted. Names
are sysctl(8)'s: dots between the parts, and a dot within one (interface eth0.5) as a slash.
Does not: decide when (host.py does), or keep the previous values (the local store does).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from fusisd.errors import FusisError

PROC_SYS = Path("/proc/sys")
SWAP = str.maketrans("/.", "./")
_MEND = "set it yourself and use --no-sysctl"
CONNTRACK_ENOUGH = 65536  # a TCP connection's entry outlives it by 120 s (TIME_WAIT): about 550 new ones a second


class SysctlError(FusisError):
    """A switch could not be set; `str()` says which, to what, and why."""


class When(Enum):
    """What a row is for."""

    ALWAYS = auto()
    MASQUERADE = auto()
    IPV6 = auto()
    PATH_CHECK = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """One switch. `name` may hold `*` for every interface, `{iface}` for the VIPs'. It applies to kernels before `until`;
    `only_from` guards a change that is right only from one value. `with_all`: the kernel takes the larger of the
    interface's value and that of `all`. `disturbs`: what the kernel sets along with it, noted and put back with it."""

    name: str
    value: str
    when: When
    reason: str
    until: tuple[int, int] | None = None
    only_from: str | None = None
    with_all: bool = False
    disturbs: Mapping[str, str] = field(default_factory=dict)


TABLE = (
    Row(
        "net/ipv4/ip_forward",
        "1",
        When.ALWAYS,
        "the kernel forwards for NAT and tunnels only when told to",
        disturbs={"net/ipv4/conf/*/forwarding": "1", "net/ipv4/conf/all/accept_redirects": "0"},  # inet_forward_change()
    ),
    Row(
        "net/ipv4/conf/*/send_redirects",
        "0",
        When.ALWAYS,
        "one-armed: no redirect that sends a client past us; the kernel takes all OR the interface's own",
    ),
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
    Row(
        "net/ipv6/conf/all/forwarding",
        "1",
        When.IPV6,
        "as ip_forward, for IPv6 services",
        disturbs={"net/ipv6/conf/*/forwarding": "1"},  # addrconf_fixup_forwarding()
    ),
    Row(
        "net/ipv4/conf/{iface}/accept_local",
        "1",
        When.PATH_CHECK,
        "a path check's answer comes from the VIP, which is ours, too: dropped as a martian otherwise (measured)",
        with_all=True,
    ),
    Row(
        "net/ipv4/conf/{iface}/rp_filter",
        "2",
        When.PATH_CHECK,
        "strict drops that answer, unless the VIP is on the interface where it comes in; nothing else needs it loose",
        only_from="1",
        with_all=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch that has not its value: `value` None is not to be written, only noted, for another disturbs it."""

    name: str
    previous: str
    value: str | None
    reason: str


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """(major, minor) of a `uname -r`, by default of the kernel we run on."""
    match = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def rows(purposes: Iterable[When], version: tuple[int, int]) -> tuple[Row, ...]:
    """The rows that apply for these purposes (and always), in the order in which they are written."""
    wanted = {When.ALWAYS, *purposes}
    return tuple(row for row in TABLE if row.when in wanted and (row.until is None or version < row.until))


def rows_for(purpose: When) -> tuple[Row, ...]:
    """The rows that are there for this alone."""
    return tuple(row for row in TABLE if row.when is purpose)


class Look(NamedTuple):
    """What has to be noted and written, in this order; names of those that have the value that we
    would write; {row: why it was not read}."""

    pending: list[Switch]
    right: set[str]
    failures: dict[str, str]


def look(applying: Iterable[Row], iface: str, root: Path = PROC_SYS) -> Look:
    """How the switches of these rows stand."""
    seen = Look([], set(), {})
    for row in applying:
        name = row.name.format(iface=iface)
        try:
            for path in _paths(name, root):
                _look_at(row, path, root, seen)
        except OSError as error:
            seen.failures[name.translate(SWAP)] = f"cannot read it ({row.reason}): {error.strerror}; {_MEND}"
    return seen


def _look_at(row: Row, path: Path, root: Path, seen: Look) -> None:
    try:
        previous = path.read_text().strip()
    except FileNotFoundError:
        if "*" in row.name:
            return  # the interface went
        raise
    in_force = max(previous, _of_all(path)) if row.with_all else previous
    if previous == row.value:
        seen.right.add(_name(path, root))
    if in_force != row.value and row.only_from in (None, in_force):
        seen.pending.extend((*_disturbed(row, root), Switch(_name(path, root), previous, row.value, row.reason)))


def lets_in(iface: str, root: Path = PROC_SYS) -> str:
    """Why an IPv4 packet from an address that is ours, too, is dropped when it comes in there; "" when it is not."""
    for name, refused in (("accept_local", "0"), ("rp_filter", "1")):
        path = root / "net/ipv4/conf" / iface / name
        try:
            if max(path.read_text().strip(), _of_all(path)) == refused:
                return f"{_name(path, root)} is {refused}: the answer of a path check would be dropped"
        except OSError as error:
            return f"cannot read {_name(path, root)}: {error.strerror}"
    return ""


def write(switch: Switch, root: Path = PROC_SYS) -> None:
    """Set it, unless it is there to be noted only. Raises SysctlError."""
    if switch.value is not None:
        try:
            _path(switch.name, root).write_text(switch.value)
        except FileNotFoundError:
            return  # it was read a moment ago: its interface went
        except OSError as error:
            why = f"{switch.reason}): {error.strerror}"
            raise SysctlError(f"cannot set {switch.name}={switch.value} ({why}; {_MEND}") from None


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of the noted switches: {name: value put back}, {name: why it was left}, {name: why it failed}."""

    done: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def restore(noted: Mapping[str, str], root: Path = PROC_SYS) -> Restored:
    """Put back what was noted (name: previous value) where the value is still the one that we set.

    In the reverse of the table's order. The kernel changes some along with others, so all are read before one is written.
    What stands as it was, or is there no more, is in none of the answers.
    """
    result = Restored()
    goals: dict[str, str] = {}
    for name in sorted(noted, key=_rank):
        try:
            now = _path(name, root).read_text().strip()
        except OSError:
            continue  # its interface or module is gone
        ours = _values(name)
        goals[name] = noted[name] if now in ours else now
        if goals[name] != now:
            result.done[name] = goals[name]
        elif now != noted[name]:
            result.changed[name] = f"{now} now, not the {' or '.join(sorted(ours))} that we set; it was {noted[name]}"
    for name, goal in goals.items():
        path = _path(name, root)
        try:
            if path.read_text().strip() != goal:
                path.write_text(goal)
        except OSError as error:
            result.done.pop(name, None)
            result.failed[name] = f"cannot set it back to {goal}: {error.strerror}"
    return result


def shared_warning(noted: Iterable[str]) -> str:
    """The sentence that names IPVS's switches among those that we changed: services of others follow them, too."""
    names = sorted(name for name in noted if name.startswith("net.ipv4.vs."))
    settings = ", ".join(f"{name}={' or '.join(sorted(_values(name)))}" for name in names)
    return f"set for our services, and in force for those in the kernel that are not ours: {settings}" if names else ""


def conntrack_warning(root: Path = PROC_SYS) -> str:
    """The sentence that says that masquerading has too few conntrack entries, "" when it has enough. Not ours to raise:
    it is memory of the whole machine, and read-only in other network namespaces than the first."""
    try:
        maximum = int((root / "net/netfilter/nf_conntrack_max").read_text())
    except (OSError, ValueError):
        return ""  # not loaded yet
    if maximum >= CONNTRACK_ENOUGH:
        return ""
    rate = maximum // 120
    return (
        f"net.netfilter.nf_conntrack_max is {maximum}: masquerading keeps an entry for 120 s after each connection, so more"
        f" than about {rate} new connections a second are dropped; sysctl -w net.netfilter.nf_conntrack_max=262144"
    )


def _values(name: str) -> set[str]:
    """What we may have set a switch to."""
    return {value for pattern, value in _set() if fnmatchcase(name.translate(SWAP), pattern)}


def _rank(name: str) -> int:
    """Later in the table comes first when things are put back; what a row disturbs comes after it."""
    patterns = [pattern for pattern, _value in _set()]
    matching = [place for place, pattern in enumerate(patterns) if fnmatchcase(name.translate(SWAP), pattern)]
    return -max(matching, default=0)


def _set() -> Iterator[tuple[str, str]]:
    """(pattern, value) of all that the table's rows change, the disturbed before the row."""
    for row in TABLE:
        yield from row.disturbs.items()
        yield row.name.format(iface="*"), row.value


def _disturbed(row: Row, root: Path) -> Iterator[Switch]:
    for pattern in row.disturbs:
        for path in _paths(pattern, root):
            try:
                yield Switch(_name(path, root), path.read_text().strip(), None, row.reason)
            except OSError:
                continue  # the interface went


def _of_all(path: Path) -> str:
    return (path.parent.parent / "all" / path.name).read_text().strip()


def _paths(name: str, root: Path) -> Iterator[Path]:
    if "*" in name:
        yield from sorted(root.glob(name))
    else:
        yield root / name


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root)).translate(SWAP)


def _path(name: str, root: Path) -> Path:
    return root / name.translate(SWAP)
