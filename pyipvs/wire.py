"""Attributes of IPVS generic netlink as tables, and one codec for all of them: pure, bytes in, values out.

A netlink attribute is a u16 length (header included), a u16 type, the value, and padding to four bytes
(struct nlattr in <linux/netlink.h>). Numbers are in host order but for ports and IPv4 netmasks. Attributes
not in a table are skipped, so a newer kernel's additions, and the PAD attributes of kernels without unaligned
access, do no harm. What names an object must be there, and what every kernel sends and would mislead as 0: a
service's scheduler and flags, a destination's method and weight. Another value that is missing is 0, as an old
kernel's tunnel type, and a timeout of a protocol that this kernel does not balance. Any bytes decode to values or
raise DecodeError, nothing else (a property test says so).
Does not: send anything, or know message headers and sequence numbers (netlink.py does).
"""

from __future__ import annotations

import dataclasses
import functools
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from pyipvs.const import CmdAttr, DestAttr, InfoAttr, StatsAttr, SvcAttr, SvcFlag
from pyipvs.errors import DecodeError
from pyipvs.model import (
    Destination,
    Family,
    Info,
    Protocol,
    Service,
    ServiceFlags,
    ServiceKey,
    ServiceStatus,
    Stats,
    Timeouts,
    family_of,
)

T = TypeVar("T")
Values = dict[str, Any]

HEADER = struct.Struct("=HH")  # struct nlattr: length, type
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: the two upper bits are NLA_F_NESTED and NLA_F_NET_BYTEORDER
_SETTABLE = int(SvcFlag.ONEPACKET | SvcFlag.SCHED1 | SvcFlag.SCHED2 | SvcFlag.SCHED3)
_FLAGS_MASK = _SETTABLE | SvcFlag.PERSISTENT


class Kind(NamedTuple):
    """How a value of one kind stands in an attribute; `decode` may raise struct.error.

    `layout` and `size` are its struct format and bytes where it has one size.
    """

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    flag: int = 0
    layout: str = ""
    size: int = 0


class Attr(NamedTuple):
    """One row of a table: the attribute's number, the name of its value here, and its kind."""

    number: int
    field: str
    kind: Kind


class Table(tuple[Attr, ...]):
    """The attributes of one level, in the order in which the kernel sends them."""

    def __init__(self, _rows: tuple[Attr, ...]) -> None:
        self.by_number = {int(attr.number): (attr.field, attr.kind.decode) for attr in self}
        self._kinds = {int(attr.number): attr for attr in self}

    def attribute(self, number: int) -> Attr | None:
        """The row for an attribute's type as it stands in a message, None for one that we do not know."""
        return self._kinds.get(number & _TYPE_MASK)


def _number(order: str, letter: str) -> Kind:
    packer = struct.Struct(order + letter)
    return Kind(packer.pack, lambda data: packer.unpack(data)[0], 0, letter, packer.size)


U8, U16, U32, I32, U64 = (_number("=", letter) for letter in "BHIiQ")
BE16 = _number("!", "H")
ADDRESS = Kind(lambda packed: packed.ljust(16, b"\0"), bytes, 0, "16s", 16)  # union nf_inet_addr, family apart
# A name that is no UTF-8, as an interface's may be, is shown by its bytes rather than hide the rest of a table.
TEXT = Kind(
    lambda text: text.encode() + b"\0", lambda data: data.partition(b"\0")[0].decode(errors="backslashreplace")
)
FLAGS = Kind(lambda pair: struct.pack("=II", *pair), struct.Struct("=II").unpack, 0, "", 8)  # struct ip_vs_flags
RAW = Kind(bytes, bytes)
NESTED = Kind(bytes, bytes, 0x8000)  # NLA_F_NESTED, which libnl sets and the kernel's answers do not have

COMMAND = Table(
    (
        Attr(CmdAttr.SERVICE, "service", NESTED),
        Attr(CmdAttr.DEST, "destination", NESTED),
        Attr(CmdAttr.DAEMON, "daemon", NESTED),
        Attr(CmdAttr.TIMEOUT_TCP, "tcp_s", U32),
        Attr(CmdAttr.TIMEOUT_TCP_FIN, "tcp_fin_s", U32),
        Attr(CmdAttr.TIMEOUT_UDP, "udp_s", U32),
    )
)
SERVICE = Table(
    (
        Attr(SvcAttr.AF, "family", U16),
        Attr(SvcAttr.FWMARK, "mark", U32),  # instead of the next three
        Attr(SvcAttr.PROTOCOL, "protocol", U16),
        Attr(SvcAttr.ADDR, "address", ADDRESS),
        Attr(SvcAttr.PORT, "port", BE16),
        Attr(SvcAttr.SCHED_NAME, "scheduler", TEXT),
        Attr(SvcAttr.PE_NAME, "persistence_engine", TEXT),
        Attr(SvcAttr.FLAGS, "flags", FLAGS),
        Attr(SvcAttr.TIMEOUT, "persistence_s", U32),
        Attr(SvcAttr.NETMASK, "netmask", U32),  # IPv4: a mask in network order, IPv6: a prefix length
        Attr(SvcAttr.STATS, "stats", NESTED),
        Attr(SvcAttr.STATS64, "stats64", NESTED),
    )
)
DESTINATION = Table(
    (
        Attr(DestAttr.ADDR, "address", ADDRESS),
        Attr(DestAttr.PORT, "port", BE16),
        Attr(DestAttr.FWD_METHOD, "method", U32),
        Attr(DestAttr.WEIGHT, "weight", I32),
        Attr(DestAttr.TUN_TYPE, "tunnel_type", U8),
        Attr(DestAttr.TUN_PORT, "tunnel_port", BE16),
        Attr(DestAttr.TUN_FLAGS, "tunnel_flags", U16),
        Attr(DestAttr.U_THRESH, "upper_threshold", U32),
        Attr(DestAttr.L_THRESH, "lower_threshold", U32),
        Attr(DestAttr.ACTIVE_CONNS, "active", U32),
        Attr(DestAttr.INACT_CONNS, "inactive", U32),
        Attr(DestAttr.PERSIST_CONNS, "persistent", U32),
        Attr(DestAttr.STATS, "stats", NESTED),
        Attr(DestAttr.ADDR_FAMILY, "family", U16),
        Attr(DestAttr.STATS64, "stats64", NESTED),
    )
)
STATS = Table(
    (
        Attr(StatsAttr.CONNS, "connections", U32),
        Attr(StatsAttr.INPKTS, "packets_in", U32),
        Attr(StatsAttr.OUTPKTS, "packets_out", U32),
        Attr(StatsAttr.INBYTES, "bytes_in", U64),
        Attr(StatsAttr.OUTBYTES, "bytes_out", U64),
        Attr(StatsAttr.CPS, "connections_per_s", U32),
        Attr(StatsAttr.INPPS, "packets_in_per_s", U32),
        Attr(StatsAttr.OUTPPS, "packets_out_per_s", U32),
        Attr(StatsAttr.INBPS, "bytes_in_per_s", U32),
        Attr(StatsAttr.OUTBPS, "bytes_out_per_s", U32),
    )
)
STATS64 = Table(tuple(attr._replace(kind=U64) for attr in STATS))
INFO = Table(
    (
        Attr(InfoAttr.VERSION, "version", U32),
        Attr(InfoAttr.CONN_TAB_SIZE, "connection_table_size", U32),
    )
)


def pack(table: Table, values: Mapping[str, Any]) -> bytes:
    """The attributes of `table` that `values` has and that are not None, in the table's order."""
    parts: list[bytes] = []
    for attr in table:
        value = values.get(attr.field)
        if value is not None:
            data = attr.kind.encode(value)
            parts += (HEADER.pack(len(data) + 4, attr.number | attr.kind.flag), data, bytes(-len(data) % 4))
    return b"".join(parts)


def unpack(table: Table, data: bytes) -> Values:
    """The values of the attributes in `data` that `table` knows. Raises DecodeError."""
    known, values = table.by_number, {}
    offset, end = 0, len(data)
    try:
        while offset < end:
            length, number = HEADER.unpack_from(data, offset)
            stop = offset + length
            if length < 4 or stop > end:
                raise DecodeError(f"attribute {number & _TYPE_MASK} claims {length} of {end - offset} bytes")
            if (attr := known.get(number & _TYPE_MASK)) is not None:
                values[attr[0]] = attr[1](data[offset + 4 : stop])
            offset = (stop + 3) & ~3
    except struct.error as error:
        raise DecodeError(f"a bad attribute near byte {offset} of {end}: {error}") from None
    return values


def key_values(key: ServiceKey) -> Values:
    """The values that name a service."""
    if key.mark is not None:
        return {"family": key.family, "mark": key.mark}
    return {"family": key.family, "protocol": key.protocol, "address": key.packed, "port": key.port}


def service_key(values: Values) -> ServiceKey:
    """The service that these values name. Raises DecodeError."""
    family = family_seen(required(values, "family"))
    if "mark" in values:
        return trusted(ServiceKey, None, None, None, values["mark"], family, bytes(16))
    protocol = Protocol.seen(required(values, "protocol"))
    packed = required(values, "address")
    return trusted(ServiceKey, protocol, text_of(packed, family), required(values, "port"), None, family, packed)


def destination_key(address: str, port: int) -> Values:
    """The values that name a destination."""
    family = family_of(address)
    return {"address": socket.inet_pton(family, address), "port": port, "family": family}


def encode_key(key: ServiceKey) -> bytes:
    """A request that only names a service."""
    return pack(COMMAND, {"service": pack(SERVICE, key_values(key))})


def encode_service(service: Service) -> bytes:
    """A request with a service's whole configuration."""
    return pack(COMMAND, {"service": pack(SERVICE, service_values(service))})


def service_values(service: Service) -> Values:
    """The values of a service's whole configuration."""
    return key_values(service.key) | {
        "scheduler": service.scheduler,
        "flags": flags_of(service),
        "persistence_s": service.persistence_s,
        "netmask": netmask_of(service),
        "persistence_engine": service.persistence_engine,
    }


def encode_changed_service(answer: bytes, wanted: Service, named: Collection[str]) -> bytes:
    """A request that gives the service of a NEW_SERVICE answer the `named` fields of `wanted` and leaves the others as
    they came: another program may have made what a Service cannot say, as an IPv4 mask with holes. Raises DecodeError."""
    held, values = unpack(SERVICE, nested(answer, "service")), service_values(wanted)
    decided = (_SETTABLE if "flags" in named else 0) | (SvcFlag.PERSISTENT if "persistence_s" in named else 0)
    flags = required(held, "flags")[0] & ~decided | flags_of(wanted)[0] & decided
    held |= {name: values[name] for name in named} | {"flags": (flags & _FLAGS_MASK, _FLAGS_MASK)}
    held |= {"stats": None, "stats64": None}
    return pack(COMMAND, {"service": pack(SERVICE, held)})


def encode_destination(key: ServiceKey, destination: Destination) -> bytes:
    """A request with a destination's whole configuration: SET_DEST overwrites what would be left out."""
    values = {
        "address": destination.packed,
        "port": destination.port,
        "family": destination.family,
        "method": destination.method,
        "weight": destination.weight,
        "upper_threshold": destination.upper_threshold,
        "lower_threshold": destination.lower_threshold,
    }
    if (tunnel := destination.tunnel) is not None:
        values |= {"tunnel_type": tunnel.type, "tunnel_port": tunnel.port, "tunnel_flags": tunnel.flags}
    return _with_destination(key, values)


def encode_destination_key(key: ServiceKey, address: str, port: int) -> bytes:
    """A request that only names a destination."""
    return _with_destination(key, destination_key(address, port))


def encode_timeouts(timeouts: Timeouts) -> bytes:
    """The three timeouts; 0 leaves one as it is (ip_vs_set_timeout)."""
    return pack(COMMAND, {"tcp_s": timeouts.tcp_s, "tcp_fin_s": timeouts.tcp_fin_s, "udp_s": timeouts.udp_s})


def decode_service(data: bytes) -> ServiceStatus:
    """A NEW_SERVICE answer. Raises DecodeError."""
    values = unpack(SERVICE, nested(data, "service"))
    return service_status(values, stats(values))


def service_status(values: Values, counted: Iterable[int]) -> ServiceStatus:
    """The service of these values, with the fields of Stats. Raises DecodeError."""
    key = service_key(values)
    flags = required(values, "flags")[0]
    service = trusted(
        Service,
        key,
        required(values, "scheduler"),
        ServiceFlags(flags & _SETTABLE),
        values.get("persistence_s", 0) if flags & SvcFlag.PERSISTENT else 0,
        _prefix(values.get("netmask", 0), key.family),
        values.get("persistence_engine"),
    )
    return ServiceStatus(service, Stats(*counted))


def decode_timeouts(data: bytes) -> Timeouts:
    """A SET_CONFIG answer. Raises DecodeError."""
    values = unpack(COMMAND, data)
    return trusted(Timeouts, *(values.get(name, 0) for name in ("tcp_s", "tcp_fin_s", "udp_s")))


def decode_info(data: bytes) -> Info:
    """A SET_INFO answer. Raises DecodeError."""
    values = unpack(INFO, data)
    version = required(values, "version")
    text = f"{version >> 16}.{version >> 8 & 255}.{version & 255}"  # NVERSION() in <linux/ip_vs.h>
    return Info(text, required(values, "connection_table_size"))


def _with_destination(key: ServiceKey, values: Values) -> bytes:
    nested = {"service": pack(SERVICE, key_values(key)), "destination": pack(DESTINATION, values)}
    return pack(COMMAND, nested)


def nested(data: bytes, field: str) -> bytes:
    """The attributes below one of the first level. Raises DecodeError."""
    below: bytes = required(unpack(COMMAND, data), field)
    return below


def required(values: Values, field: str) -> Any:
    """A value that every message has. Raises DecodeError."""
    try:
        return values[field]
    except KeyError:
        raise DecodeError(f"the message has no {field}") from None


def trusted(cls: type[T], *values: Any) -> T:
    """A frozen value of its fields in order, made without validation: the kernel may hold what we would not ask for."""
    made = object.__new__(cls)
    for name, value in zip(_names(cast(Any, cls)), values, strict=True):
        object.__setattr__(made, name, value)
    return made


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def family_seen(number: int) -> Family:
    """The address family that the kernel named. Raises DecodeError."""
    try:
        return Family(number)
    except ValueError:
        raise DecodeError(f"address family {number}") from None


def text_of(packed: bytes, family: Family) -> str:
    """An address as text. Raises DecodeError."""
    try:
        return socket.inet_ntop(family, packed[: 16 if family is Family.INET6 else 4])
    except ValueError:
        raise DecodeError(f"an address of {len(packed)} bytes") from None


def flags_of(service: Service) -> tuple[int, int]:
    """A service's flags and which of all it decides (struct ip_vs_flags)."""
    return service.flags | (SvcFlag.PERSISTENT if service.persistence_s else 0), int(_FLAGS_MASK)


def netmask_of(service: Service) -> int:
    """A prefix length as the kernel wants it: IPv4 a mask in network order, IPv6 the length itself."""
    prefix = service.netmask or 0
    if service.key.family is Family.INET6:
        return prefix
    return socket.htonl(0xFFFFFFFF << (32 - prefix) & 0xFFFFFFFF)


def _prefix(value: int, family: Family) -> int:
    """The other way; an IPv4 mask with holes (ipvsadm takes them) counts its ones."""
    return value if family is Family.INET6 else value.bit_count()


_COUNTERS = tuple(attr.field for attr in STATS)


def stats(values: Values) -> tuple[int, ...]:
    """The fields of Stats, from the 64-bit counters where the kernel has them: the others wrap. Raises DecodeError."""
    table, data = (STATS64, values["stats64"]) if "stats64" in values else (STATS, values.get("stats", b""))
    counted = unpack(table, data)
    return tuple(counted.get(name, 0) for name in _COUNTERS)
