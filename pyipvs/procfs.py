"""What IPVS shows outside netlink: its connections, counters per CPU, sysctls, and whether its table changed.

The default paths are below /proc/thread-self: /proc/net is the network namespace of the process's first thread,
whatever namespace the calling thread has entered (get_proc_task_net in fs/proc/proc_net.c; measured on Linux 6.1).
Does not: enter network namespaces, speak netlink, or load the module: without it all of this is ModuleMissing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from pyipvs.errors import DecodeError, IPVSError, ModuleMissing, PermissionDenied
from pyipvs.model import Protocol, ServiceKey

CONNECTIONS = Path("/proc/thread-self/net/ip_vs_conn")
SYNCED_CONNECTIONS = Path("/proc/thread-self/net/ip_vs_conn_sync")
CPU_STATISTICS = Path("/proc/thread-self/net/ip_vs_stats_percpu")
TABLE = Path("/proc/thread-self/net/ip_vs")
SYSCTLS = Path("/proc/sys/net/ipv4/vs")  # of the calling thread's namespace

# ip_vs_conn_seq_show and ip_vs_conn_sync_seq_show in ip_vs_conn.c; a destination may be of the other family
_ADDRESS, _PORT = r"([0-9A-Fa-f]{8}|\[?[0-9A-Fa-f:]{39}\]?)", r"([0-9A-Fa-f]{4})"
_CONNECTION = re.compile(
    rf"(\S+) +{_ADDRESS} {_PORT} {_ADDRESS} {_PORT} {_ADDRESS} {_PORT} (\S+) +(?:(LOCAL|SYNC) +)?([0-9]{{1,20}})"
    r"(?: (\S+) ([^\n]*))?\n?\Z",
    re.ASCII,
)
# ip_vs_proto_name in ip_vs_core.c, which writes IP_number for all others
_PROTOCOLS = {"IP": 0, "ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132}
_CPU_ROW = re.compile(r" *(~|[0-9A-Fa-f]+)((?: +[0-9A-Fa-f]+){5})\n?\Z")  # ip_vs_stats_percpu_show in ip_vs_ctl.c
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}\Z")

# update_defense_level in ip_vs_ctl.c moves these between 1 (automatic, at rest) and 2 (automatic, at work)
_AUTOMATIC = frozenset({"drop_entry", "drop_packet", "secure_tcp"})
_CPU_LISTS = frozenset({"est_cpulist"})  # text even when it is one number; the kernel writes `0,1` back as `0-1`

_PIECE = 1 << 16  # the kernel gives about a page per read whatever is asked (seq_file.c)
_SERVICE = re.compile(rb"^(TCP|UDP|SCTP|FWM)  *(\S+) [^\n]*\n(?:  ->[^\n]*\n?)*", re.MULTILINE)
_COUNTS = re.compile(rb"^(  -> \S+ +\S+ +\S+)[^\n]*", re.MULTILINE)  # address:port, method and weight are kept


@dataclass(frozen=True, slots=True)
class Connection:
    """One entry of the connection table.

    A persistence template (what keeps a client with its destination) is an entry too: its client port is 0 and
    its state NONE or ASSURED. The one of a firewall mark has protocol 0, and the mark as its virtual address:
    0.0.0.9 for mark 9. `expires_s`: seconds until it goes unless a packet comes. `persistence_engine` and
    `engine_data`: of a template made by an engine, `sip` and the Call-ID; otherwise None and empty. `origin`:
    `local`, or `sync` when another balancer's sync daemon sent it; None when it was not asked for.
    """

    protocol: Protocol
    client_address: str
    client_port: int
    virtual_address: str
    virtual_port: int
    destination_address: str
    destination_port: int
    state: str
    expires_s: int
    persistence_engine: str | None = None
    engine_data: str = ""
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class CpuStatistics:
    """What one CPU counted since the namespace was made, or (`cpu` is None) the total."""

    cpu: int | None
    connections: int
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int


def connections(path: Path | None = None, synced: bool = False) -> Iterator[Connection]:
    """The connections of this network namespace, read line by line; needs no privilege.

    `synced` tells the origin of each, but no persistence engine: the kernel has a file for either. `path` replaces
    that file. It is opened before this returns, so the caller may leave the namespace while it reads. While
    connections come and go some may be missing or seen twice. Linux 6.1 walks its table anew for every page
    of text (ip_vs_conn_array in ip_vs_conn.c): the time grows with the square of the number of connections.
    Raises ModuleMissing, IPVSError, and DecodeError naming a line that is none, the latter while it is read too.
    """
    lines = _lines(path or (SYNCED_CONNECTIONS if synced else CONNECTIONS))
    heading = next(lines, "")  # opens the file
    if not heading.startswith("Pro FromIP"):
        raise DecodeError(f"no heading of a connection table: {heading!r}")
    return map(_connection, lines)


def cpu_statistics(path: Path = CPU_STATISTICS) -> list[CpuStatistics]:
    """What each possible CPU counted in this network namespace, and last the total; needs no privilege.

    The total is not the sum: the kernel adds up every 2 s (ip_vs_est.c, not at all while sysctl run_estimation
    is 0), and zeroing the counters sets back the total alone. Raises ModuleMissing, IPVSError, DecodeError.
    """
    lines = _lines(path)
    next(lines, "")
    heading = next(lines, "")
    if not heading.startswith("CPU "):
        raise DecodeError(f"no heading of counters per CPU: {heading!r}")
    rows = []
    for line in lines:
        row = _cpu_row(line)
        rows.append(row)
        if row.cpu is None:  # rates follow, of the total alone
            return rows
    raise DecodeError("counters per CPU without their total")


def sysctls(root: Path = SYSCTLS) -> dict[str, int | str]:
    """Every IPVS sysctl of this network namespace by name; needs no privilege.

    A whole number is an int; several (sync_threshold) are text, one space apart. Raises ModuleMissing, IPVSError.
    """
    return {name: _read_sysctl(root, name) for name in _sysctl_names(root)}


def sysctl(name: str, root: Path = SYSCTLS) -> int | str:
    """One of them. Raises ValueError with the names that are near when this kernel has none of that name."""
    return _read_sysctl(root, _known(root, name))


def set_sysctl(name: str, value: int | str, root: Path = SYSCTLS) -> None:
    """Change one in this network namespace and read it back. Few are limited: conn_reuse_mode may be 7.

    Needs root, or CAP_NET_ADMIN in the namespace's user namespace. Raises ValueError as `sysctl` does,
    PermissionDenied, ModuleMissing, and IPVSError (EINVAL) when the kernel refused the value or made another of it.
    """
    text = str(int(value)) if isinstance(value, int) else value
    path = root / _known(root, name)
    what = f"{name} to {text!r}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused("set sysctl", what, error) from None
    # Not every handler in ip_vs_ctl.c reports what it does not take: of `4` for sync_threshold it makes `4 50`,
    # and older kernels keep the value they have without a word.
    held = _read_sysctl(root, name)
    if name not in _CPU_LISTS and _settled(name, held) != _settled(name, _value(name, text)):
        raise IPVSError("set sysctl", errno.EINVAL, what, hint=f"it is {held!r} now")


class TableProbe:
    """Tells cheaply whether this network namespace's services or destinations changed; a context manager.

    One descriptor, which stays with the namespace in which it was opened (and keeps that alive), from whatever
    thread or namespace it is read. It sees keys, scheduler, ops, persistence, netmask, method and weight. It does
    not see thresholds, tunnel settings, persistence engine and the schedulers' own flags: the kernel's file has
    none of them (ip_vs_info_seq_show in ip_vs_ctl.c). Needs no privilege.
    """

    def __init__(self, path: Path = TABLE) -> None:
        """Open the table. Raises ModuleMissing, IPVSError."""
        self._path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - it stays open
        except OSError as error:
            raise _refused("open", path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor up; again does nothing."""
        self._file.close()

    def digest(self) -> bytes:
        """A fingerprint (16 bytes) of the table without connection counts: another one means that it changed.

        Take it before the table is read over netlink: a change in between is then seen by the next. The kernel
        writes in the order of its hash chains, so a service or destination that went and came back may change it.
        Raises ModuleMissing once the module was unloaded (then for good: open another), IPVSError, and ValueError
        when it was closed.
        """
        text = _COUNTS.sub(rb"\1", self._read())
        return hashlib.blake2b(text, digest_size=16).digest()

    def services(self) -> dict[ServiceKey, bytes]:
        """A fingerprint (16 bytes) for each service and its destinations, as `digest` is of the whole: which changed.

        Raises what `digest` raises, and DecodeError for a table that is not as Linux writes it.
        """
        text = _COUNTS.sub(rb"\1", self._read())
        every = _SERVICE.finditer(text)
        return {_key_of(one[1], one[2]): hashlib.blake2b(one[0], digest_size=16).digest() for one in every}

    def _read(self) -> bytes:
        descriptor = self._file.fileno()
        pieces: list[bytes] = []
        length = 0
        try:
            while piece := os.pread(descriptor, _PIECE, length):
                pieces.append(piece)
                length += len(piece)
        except OSError as error:
            raise _refused("read", self._path, error) from None
        return b"".join(pieces)


@lru_cache(maxsize=65536)
def _key_of(protocol: bytes, where: bytes) -> ServiceKey:
    """The service of a table's line; its address as ip_vs_info_seq_show in ip_vs_ctl.c writes it."""
    try:
        if protocol == b"FWM":
            return ServiceKey.fwmark(int(where, 16))
        address, _, port = where.rpartition(b":")
        text = address[1:-1].decode() if address[:1] == b"[" else str(ip_address(int(address, 16)))
        return ServiceKey(Protocol.of(protocol.decode()), text, int(port, 16))
    except ValueError as error:
        raise DecodeError(f"{protocol!r} {where!r} is no service: {error}") from None


def _refused(operation: str, what: object, error: OSError) -> IPVSError:
    """The error for a file that could not be used."""
    code = error.errno or errno.EIO
    if code in (errno.ENOENT, errno.EIO):  # EIO: the module that made an open file went (proc_reg_read in inode.c)
        return ModuleMissing(operation, code, str(what))
    if code in (errno.EPERM, errno.EACCES):
        return PermissionDenied(operation, code, str(what))
    if code == errno.EROFS:
        return PermissionDenied(operation, code, str(what), hint="/proc/sys is mounted read-only, as in containers")
    return IPVSError(operation, code, str(what))


def _lines(path: Path) -> Iterator[str]:
    """Latin-1, because what a persistence engine prints are a client's bytes; they then cannot fail to decode."""
    try:
        with open(path, encoding="latin-1", newline="\n") as file:
            yield from file
    except OSError as error:
        raise _refused("read", path, error) from None


def _connection(line: str) -> Connection:
    fields = _CONNECTION.match(line)
    if not fields:
        raise DecodeError(f"no line of a connection table: {line!r}")
    protocol, client, client_port, virtual, virtual_port, server, server_port, state, origin, expires, *engine = (
        fields.groups()
    )
    try:
        return Connection(
            _protocol(protocol), _address(client), int(client_port, 16), _address(virtual), int(virtual_port, 16),
            _address(server), int(server_port, 16), state, int(expires), engine[0], engine[1] or "",
            origin.lower() if origin else None,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise DecodeError(f"no line of a connection table: {line!r}: {error}") from None


@lru_cache
def _protocol(name: str) -> Protocol:
    if name in _PROTOCOLS:
        return Protocol.seen(_PROTOCOLS[name])
    prefix, _, number = name.partition("IP_")
    if prefix or not (number.isascii() and number.isdigit() and len(number) <= 5):  # IP_ and an unsigned short
        raise ValueError(f"{name!r} is no protocol")
    return Protocol.seen(int(number))


def _address(text: str) -> str:
    """Hex digits as IPv4, full groups as IPv6. Raises OSError."""
    if ":" not in text:
        return socket.inet_ntop(socket.AF_INET, bytes.fromhex(text))
    groups = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, groups))


def _cpu_row(line: str) -> CpuStatistics:
    fields = _CPU_ROW.match(line)
    if not fields:
        raise DecodeError(f"no line of counters per CPU: {line!r}")
    cpu = None if fields[1] == "~" else int(fields[1], 16)
    return CpuStatistics(cpu, *(int(number, 16) for number in fields[2].split()))


def _sysctl_names(root: Path) -> list[str]:
    try:
        return sorted(os.listdir(root))
    except OSError as error:
        raise _refused("list", root, error) from None


def _known(root: Path, name: str) -> str:
    names = _sysctl_names(root)
    if name not in names:
        near = get_close_matches(name, names, 3) or [known for known in names if name and name in known] or names
        raise ValueError(f"this kernel has no IPVS sysctl {name!r}; it has {', '.join(near)}")
    return name


def _read_sysctl(root: Path, name: str) -> int | str:
    try:
        return _value(name, (root / name).read_text("latin-1"))  # as in _lines
    except OSError as error:
        raise _refused("read sysctl", name, error) from None


def _value(name: str, text: str) -> int | str:
    words = " ".join(text.split())
    return int(words) if name not in _CPU_LISTS and _WHOLE_NUMBER.match(words) else words


def _settled(name: str, value: int | str) -> int | str:
    return 1 if name in _AUTOMATIC and value == 2 else value
