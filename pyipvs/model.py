"""Services, destinations and their statistics as frozen values.

Identity (`ServiceKey`), configuration (`Service`, `Destination`) and observation (`ServiceStatus`,
`DestinationStatus`) are different types, so that equality of configuration never sees a counter. Addresses
are canonical text. Values are validated when a caller makes them (the kernel takes some that it then drops
traffic for, measured on Linux 6.1); what the kernel sent is trusted.
Does not: know netlink.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from functools import total_ordering
from typing import Any, NamedTuple, Self

from pyipvs.const import NAME_MAX

_MODULE_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{NAME_MAX - 1}}}\Z")  # goes into modprobe ip_vs_NAME
_MAX_TIMEOUT_S = (2**31 - 1) // 1000  # ip_vs_set_timeout allows INT_MAX / HZ, and HZ is at most 1000


class Word(IntEnum):
    """An integer whose text is its name in lower case, and which can be made from that text."""

    def __str__(self) -> str:
        return self.name.lower()

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None

    @classmethod
    def of(cls, value: Any, what: str = "") -> Self:
        """The member with this name or number. Raises ValueError that names them all; `what` begins it."""
        try:
            return cls(value)
        except ValueError:
            words = ", ".join(str(member) for member in cls)
            raise ValueError(f"{what or cls.__name__} {value!r} must be one of {words}") from None

    @classmethod
    def seen(cls, value: int) -> Self:
        """The member for what the kernel holds. One we do not know gets its number as name: being blind to a
        whole table because of one entry that another program made would be worse."""
        try:
            return cls(value)
        except ValueError:
            stranger = int.__new__(cls, value)
            stranger._name_, stranger._value_ = str(value), value
            return stranger


class Protocol(Word):
    """IPPROTO_* that IPVS balances."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Family(Word):
    """Address family (AF_INET, AF_INET6)."""

    INET = socket.AF_INET
    INET6 = socket.AF_INET6


class ForwardingMethod(Word):
    """How a packet reaches the real server. LOCAL and BYPASS are the kernel's own and only ever read."""

    NAT = 0
    LOCAL = 1
    TUNNEL = 2
    ROUTE = 3
    BYPASS = 4


class TunnelType(Word):
    """Encapsulation of method tunnel (IP_VS_CONN_F_TUNNEL_TYPE_*)."""

    IPIP = 0
    GUE = 1
    GRE = 2


class ServiceFlags(IntFlag):
    """IP_VS_SVC_F_* that a caller may set. What SCHED1 to SCHED3 mean is the scheduler's affair."""

    NONE = 0
    ONE_PACKET = 0x0004
    SCHED1 = 0x0008
    SCHED2 = 0x0010
    SCHED3 = 0x0020
    SH_FALLBACK = 0x0008  # schedulers sh and mh: another destination when the chosen one has weight 0
    SH_PORT = 0x0010  # schedulers sh and mh: the client's port is part of the hash


_SETTABLE = 0x003C


def family_of(address: str) -> Family:
    """The family of a canonical address."""
    return Family.INET6 if ":" in address else Family.INET


def _set_address(value: ServiceKey | Destination, text: str, what: str) -> None:
    """Set an object's address, its 16 bytes and its family. Raises ValueError.

    The text becomes canonical as the C library writes it, which is how the kernel's answers are decoded.
    """
    family = family_of(text)
    try:
        packed = socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise ValueError(f"{what} {text!r} is not an IPv4 or IPv6 address") from None
    object.__setattr__(value, "address", socket.inet_ntop(family, packed))
    object.__setattr__(value, "packed", packed.ljust(16, b"\0"))
    object.__setattr__(value, "family", family)


def _check_host(destination: Destination) -> None:
    """Raise ValueError unless it is the address of one host: the kernel answers EINVAL (ip_vs_new_dest)."""
    first = destination.packed[0]
    multicast = first == 0xFF if destination.family is Family.INET6 else 224 <= first < 240
    if multicast or not any(destination.packed) or destination.address == "255.255.255.255":
        raise ValueError(f"destination address {destination.address} is not the address of one host")


def within(value: int, low: int, high: int, what: str) -> None:
    """Raise ValueError unless `value` is a whole number from `low` to `high`."""
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} {value!r} must be a whole number from {low} to {high}")


def endpoint(address: str, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def split_endpoint(text: str) -> tuple[str, int]:
    """The address and port of `10.0.0.1:80` or `[fd00::1]:80`. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdigit()) or (":" in host) != bracketed:
        raise ValueError(f"{text!r} is not ADDRESS:PORT or [ADDRESS]:PORT")
    return canonical(host[1:-1] if bracketed else host), int(port)


def canonical(text: str) -> str:
    """An address as the C library writes it. Raises ValueError."""
    try:
        return socket.inet_ntop(family_of(text), socket.inet_pton(family_of(text), text))
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address") from None


@total_ordering
@dataclass(frozen=True, slots=True)
class ServiceKey:
    """What tells services apart: protocol, address and port, or (then those are None) a firewall mark.

    Its text is `tcp/10.0.0.1:80`, `udp/[fd00::1]:53`, `fwmark/7`, `fwmark6/7`; `parse` reads the same. Keys
    sort by address, then port and protocol; firewall marks come last.
    """

    protocol: Protocol | None = None
    address: str | None = None
    port: int | None = None
    mark: int | None = None
    family: Family = Family.INET
    packed: bytes = field(default=bytes(16), init=False, repr=False, compare=False)  # the address, in 16 bytes

    def __post_init__(self) -> None:
        """Raises ValueError naming the part that is wrong."""
        if self.mark is not None:
            if (self.protocol, self.address, self.port) != (None, None, None):
                raise ValueError("a service has a firewall mark, or protocol, address and port: not both")
            object.__setattr__(self, "family", Family.of(self.family, "family"))
            within(self.mark, 1, 2**32 - 1, "firewall mark")  # the kernel makes tcp/0.0.0.0:0 of mark 0
            return
        if self.protocol is None or self.address is None or self.port is None:
            raise ValueError("a service needs protocol, address and port, or a firewall mark")
        _set_address(self, self.address, "service address")
        within(self.port, 0, 65535, "port")
        object.__setattr__(self, "protocol", Protocol.of(self.protocol, "protocol"))

    @classmethod
    def fwmark(cls, mark: int, family: Family = Family.INET) -> ServiceKey:
        """The key of a service that takes packets with this firewall mark (1 to 2^32-1)."""
        return cls(mark=mark, family=family)

    @classmethod
    def parse(cls, text: str) -> ServiceKey:
        """The key written as `tcp/10.0.0.1:80`; without a protocol it is tcp. Raises ValueError."""
        kind, slash, rest = text.rpartition("/")
        if kind in ("fwmark", "fwmark6"):
            if not (rest.isascii() and rest.isdigit()):
                raise ValueError(f"{text!r}: the firewall mark must be a whole number")
            return cls.fwmark(int(rest), Family.INET6 if kind == "fwmark6" else Family.INET)
        if slash and kind.upper() not in Protocol.__members__:
            raise ValueError(f"{text!r}: {kind!r} must be tcp, udp, sctp, fwmark or fwmark6")
        return cls(Protocol[kind.upper()] if slash else Protocol.TCP, *split_endpoint(rest))

    def __str__(self) -> str:
        if self.mark is not None:
            return f"fwmark{'6' if self.family is Family.INET6 else ''}/{self.mark}"
        return f"{self.protocol}/{endpoint(self.address or '', self.port or 0)}"

    def __lt__(self, other: object) -> bool:
        return self._rank() < other._rank() if isinstance(other, ServiceKey) else NotImplemented

    def _rank(self) -> tuple[object, ...]:
        if self.address is None:
            return (1, self.family, self.mark)
        return (0, self.family, self.packed, self.port, self.protocol)


def flags_in_effect(key: ServiceKey, flags: ServiceFlags) -> ServiceFlags:
    """Without ONE_PACKET where it has none: ip_vs_schedule in ip_vs_core.c heeds it for UDP alone."""
    return flags if key.protocol in (None, Protocol.UDP) else flags & ~ServiceFlags.ONE_PACKET


def _check_flags(flags: int, key: ServiceKey) -> None:
    """Raise ValueError for flags that a caller cannot set: the kernel drops them, or takes them for its own."""
    if not isinstance(flags, int) or flags & ~_SETTABLE:  # a negative number has all the upper bits
        raise ValueError(f"flags {flags!r} must be made of ServiceFlags: of 0x{_SETTABLE:x}")
    if flags_in_effect(key, ServiceFlags(flags)) != flags:
        raise ValueError(f"flag ONE_PACKET is for udp and firewall marks, not {key.protocol}")


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual service's configuration.

    `persistence_s`: seconds a client stays with its real server, 0 = not persistent. `netmask`: prefix length
    by which clients are grouped for persistence (None = each address alone). `persistence_engine`: `sip`, or
    None for the client's address.
    """

    key: ServiceKey
    scheduler: str = "wlc"
    flags: ServiceFlags = ServiceFlags.NONE
    persistence_s: int = 0
    netmask: int | None = None
    persistence_engine: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the part that is wrong."""
        full = 128 if self.key.family is Family.INET6 else 32
        if self.netmask is None:
            object.__setattr__(self, "netmask", full)
        _check_flags(self.flags, self.key)
        object.__setattr__(self, "flags", ServiceFlags(self.flags))
        for what, name in (("scheduler", self.scheduler), ("persistence_engine", self.persistence_engine)):
            if name is not None and not _MODULE_NAME.match(name):
                raise ValueError(f"{what} {name!r} must be 1 to {NAME_MAX - 1} letters or digits")
        within(self.persistence_s, 0, _MAX_TIMEOUT_S, "persistence_s")
        within(self.netmask or 0, 1, full, "netmask (a prefix length)")
        if self.key.port == 0 and not self.persistence_s:
            raise ValueError("port 0 (all ports) needs persistence_s")


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Encapsulation for method tunnel.

    `port`: UDP port of gue, else 0. `flags`: IP_VS_TUNNEL_ENCAP_FLAG_*, 1 checksum, 2 remote checksum.
    """

    type: TunnelType = TunnelType.IPIP
    port: int = 0
    flags: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError naming the part that is wrong."""
        object.__setattr__(self, "type", TunnelType.of(self.type, "tunnel type"))
        within(self.port, 0, 65535, "tunnel port")
        within(self.flags, 0, 3, "tunnel flags")
        if (self.type is TunnelType.GUE) != bool(self.port):
            raise ValueError("gue needs a tunnel port, ipip and gre have none")
        if self.flags & 2 and self.type is not TunnelType.GUE:
            raise ValueError(f"the remote checksum (tunnel flag 2) is of gue alone, not of {self.type}")


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination's configuration: where a service's connections may go.

    `weight` 0 = no new connections. `method` may be given as text. Thresholds count connections, inactive ones too:
    at `upper_threshold` (0 = no limit) new ones stop until they are fewer than `lower_threshold` (0 = three quarters
    of the upper). `tunnel` is for method tunnel only (None = ipip).
    """

    address: str
    port: int
    weight: int = 1
    method: ForwardingMethod = ForwardingMethod.NAT
    upper_threshold: int = 0
    lower_threshold: int = 0
    tunnel: Tunnel | None = None
    family: Family = field(default=Family.INET, init=False, repr=False, compare=False)  # that of the address
    packed: bytes = field(default=bytes(16), init=False, repr=False, compare=False)  # the address, in 16 bytes

    def __post_init__(self) -> None:
        """Raises ValueError naming the part that is wrong."""
        _set_address(self, self.address, "destination address")
        _check_host(self)
        object.__setattr__(self, "method", ForwardingMethod.of(self.method, "method"))
        within(self.port, 0, 65535, "port")
        within(self.weight, 0, 2**31 - 1, "weight")
        within(self.upper_threshold, 0, 2**32 - 1, "upper_threshold")
        within(self.lower_threshold, 0, self.upper_threshold, "lower_threshold")
        if self.method is ForwardingMethod.TUNNEL and self.tunnel is None:
            object.__setattr__(self, "tunnel", Tunnel())
        if self.method is not ForwardingMethod.TUNNEL and self.tunnel is not None:
            raise ValueError(f"tunnel settings are for method tunnel, not {self.method}")

    @property
    def key(self) -> tuple[str, int]:
        """What tells it apart within its service."""
        return (self.address, self.port)

    def __str__(self) -> str:
        return endpoint(self.address, self.port)


def check_pair(key: ServiceKey, destination: Destination) -> None:
    """Raise ValueError when the service `key` cannot forward to `destination`.

    The kernel takes route and tunnel with another port and drops the traffic: neither rewrites packets.
    """
    method = destination.method
    if method not in (ForwardingMethod.NAT, ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL):
        raise ValueError(f"method {method} is the kernel's own: use nat, route or tunnel")
    if method is not ForwardingMethod.NAT and key.port and destination.port != key.port:
        raise ValueError(f"port {destination.port}: method {method} keeps the service's {key.port}; use nat")
    if method is not ForwardingMethod.TUNNEL and destination.family is not key.family:
        raise ValueError(f"{destination} has another family than {key}: only method tunnel joins them")


class Stats(NamedTuple):
    """Counters since the start or the last zero, and rates: the kernel's moving averages, new every 2 s."""

    connections: int = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    connections_per_s: int = 0
    packets_in_per_s: int = 0
    packets_out_per_s: int = 0
    bytes_in_per_s: int = 0
    bytes_out_per_s: int = 0


class ServiceStatus(NamedTuple):
    """A service as the kernel has it."""

    service: Service
    stats: Stats


class DestinationStatus(NamedTuple):
    """A destination as the kernel has it; `active`, `inactive`, `persistent` are connections now."""

    destination: Destination
    active: int
    inactive: int
    persistent: int
    stats: Stats


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Connection timeouts of a network namespace in seconds; 0 in a change leaves a value as it is."""

    tcp_s: int = 0
    tcp_fin_s: int = 0
    udp_s: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError naming the part that is wrong."""
        for name in ("tcp_s", "tcp_fin_s", "udp_s"):
            within(getattr(self, name), 0, _MAX_TIMEOUT_S, name)


class Info(NamedTuple):
    """IPVS' own version, as `1.2.1`, and the size of its connection hash table."""

    version: str
    connection_table_size: int
