"""What a dump's messages hold: destinations as rows, which are plain tuples, and services as values.

Rows are what two tables are compared by. A row has the fields FIELDS, or CONFIGURED alone when nobody asked for
counters; its ports are in network order, as they came. With counters rows are made at once, for who asks for counters
looks at them; without, a table keeps their bytes (layout.Packed), for two tables are compared a service at a time.
Objects are made of rows on demand: an object takes eight times as long as its row (5.5 and 0.7 microseconds, measured
2026-11).
Does not: receive or send.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

from pyipvs import wire
from pyipvs.const import FWD_MASK
from pyipvs.errors import DecodeError
from pyipvs.framing import ANSWER_HEADER
from pyipvs.layout import Layout, Packed, Row
from pyipvs.model import (
    Destination,
    DestinationStatus,
    Family,
    ForwardingMethod,
    ServiceStatus,
    Stats,
    Tunnel,
    TunnelType,
)
from pyipvs.wire import (
    COMMAND,
    DESTINATION,
    SERVICE,
    STATS64,
    Table,
    family_seen,
    nested,
    required,
    stats,
    text_of,
    trusted,
    unpack,
)

_TUNNEL = ("tunnel_type", "tunnel_port", "tunnel_flags")
_SETTINGS = ("address", "port", "method", "weight", *_TUNNEL, "upper_threshold", "lower_threshold")
_CONNECTIONS = ("active", "inactive", "persistent")
CONFIGURED = (*_SETTINGS, "family")
FIELDS = (*_SETTINGS, *_CONNECTIONS, "family", *(attr.field for attr in STATS64))  # as the kernel sends them
_FAMILY = FIELDS.index("family")
_METHOD = CONFIGURED.index("method")
_TUNNEL_AT = slice(CONFIGURED.index("tunnel_type"), CONFIGURED.index("tunnel_flags") + 1)
_HEEDED = {TunnelType.IPIP: 0, TunnelType.GUE: 3, TunnelType.GRE: 1}  # checksum flags
_CONFIGURED_OF = itemgetter(*map(FIELDS.index, CONFIGURED))
_COUNTERS = tuple(attr.field for attr in STATS64)
_SERVICE_FIELDS = frozenset(attr.field for attr in (*SERVICE, *STATS64)) - {"stats", "stats64"}
_ENCODED = [(attr.field, attr.kind) for attr in SERVICE if not attr.kind.layout and attr.field in _SERVICE_FIELDS]
_LENGTH = struct.Struct("=I")
_IN_SERVICE = {"": COMMAND, "service": SERVICE, "stats64": STATS64}
_IN_DESTINATION = {"": COMMAND, "destination": DESTINATION, "stats64": STATS64}


class Reader:
    """Reads the messages of dumps; one for each handle, as a kernel's shapes never change."""

    def __init__(self) -> None:
        """Learns a shape from the first message of it."""
        self._destinations: dict[tuple[str, ...], Layout | None] = {}
        self._services: dict[int, Layout | None] = {}  # by length, which the name of the scheduler decides

    def rows(self, messages: memoryview, family: Family, fields: tuple[str, ...] = FIELDS) -> Sequence[Row]:
        """The destinations of whole messages, each a row of `fields` (FIELDS or CONFIGURED). `family` is the
        service's, for old kernels that do not tell a destination's. Raises DecodeError."""
        if fields not in self._destinations:
            layout = _learn(messages, _IN_DESTINATION, fields)
            self._destinations[fields] = layout if layout is not None and layout.fields == fields else None
        layout = self._destinations[fields]
        found: Sequence[Row] | None = None
        if layout is not None:
            found = layout.packed(messages) if fields is CONFIGURED else layout.rows(messages)
        return found if found is not None else [decode(message, family, fields) for message in split(messages)]

    def services(self, messages: memoryview) -> Iterator[ServiceStatus]:
        """The services of whole messages. Raises DecodeError."""
        at = 0
        while at < len(messages):
            (length,) = _LENGTH.unpack_from(messages, at)
            message = messages[at : at + length]
            if length not in self._services:
                self._services[length] = _learn(message, _IN_SERVICE, _SERVICE_FIELDS)
            yield _service(message, self._services[length])
            at += (length + 3) & ~3


def joined(parts: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """What one reader gave for the messages of one service, in one."""
    if len(parts) == 1:
        return parts[0]
    packed = [part for part in parts if isinstance(part, Packed)]
    if packed and len(packed) == len(parts):
        return Packed(packed[0].row, b"".join(part.data for part in packed))
    return [row for part in parts for row in part]


def _service(message: memoryview, layout: Layout | None) -> ServiceStatus:
    row = layout.row(message) if layout is not None else None
    if layout is None or row is None or layout.fields[-len(_COUNTERS) :] != _COUNTERS:
        return wire.decode_service(bytes(message[ANSWER_HEADER:]))
    values = dict(zip(layout.fields, row, strict=True))
    for field, kind in _ENCODED:
        if field in values:
            values[field] = kind.decode(values[field])
    if "port" in values:
        values["port"] = socket.ntohs(values["port"])
    return wire.service_status(values, row[-len(_COUNTERS) :])


def split(messages: memoryview) -> Iterator[bytes]:
    """The attributes of each message, headers left out."""
    at = 0
    while at < len(messages):
        (length,) = _LENGTH.unpack_from(messages, at)
        yield bytes(messages[at + ANSWER_HEADER : at + length])
        at += (length + 3) & ~3


def _learn(messages: memoryview, tables: Mapping[str, Table], fields: Collection[str]) -> Layout | None:
    """The shape of the first message, None when it is none."""
    (length,) = _LENGTH.unpack_from(messages)
    try:
        return Layout(bytes(messages[:length]), tables, fields)
    except struct.error:
        return None  # whoever walks the message says what is wrong with it


def decode(data: bytes, family: Family, fields: tuple[str, ...] = FIELDS) -> Row:
    """The row of one NEW_DEST answer, by walking it. Raises DecodeError."""
    values = unpack(DESTINATION, nested(data, "destination"))
    values["port"] = socket.htons(required(values, "port"))
    values["tunnel_port"] = socket.htons(values.get("tunnel_port", 0))
    values.setdefault("family", family)
    packed = required(values, "address")
    if len(packed) not in (4, 16):
        raise DecodeError(f"an address of {len(packed)} bytes")
    values["address"] = packed.ljust(16, b"\0")
    for field in ("method", "weight"):  # without a weight it would look drained
        required(values, field)
    if fields is CONFIGURED:
        return tuple(values.get(field, 0) for field in CONFIGURED)
    return (*(values.get(field, 0) for field in FIELDS[: _FAMILY + 1]), *stats(values))


def of(destination: Destination) -> Row:
    """The row of fields CONFIGURED of a destination that somebody wants."""
    tunnel = destination.tunnel or _NO_TUNNEL
    return (
        destination.packed,
        socket.htons(destination.port),
        int(destination.method),
        destination.weight,
        int(tunnel.type),
        socket.htons(tunnel.port),
        tunnel.flags,
        destination.upper_threshold,
        destination.lower_threshold,
        int(destination.family),
    )


def configured(found: Sequence[Row]) -> Iterable[Row]:
    """Rows of either kind with the fields CONFIGURED alone."""
    return map(_CONFIGURED_OF, found) if found and len(found[0]) == len(FIELDS) else found


def place(row: Row) -> Row:
    """What tells the destinations of a service apart, of a row of CONFIGURED: address, port and family."""
    return (row[0], row[1], row[-1])


def effective(row: Row) -> Row:
    """A row of CONFIGURED without the settings of a tunnel that have no effect, which a saved table does not have: those of
    another method, the port of all but gue, flags that the type does not heed (ip_vs_tunnel_xmit in ip_vs_xmit.c)."""
    kind, port, flags = row[_TUNNEL_AT]
    if row[_METHOD] & FWD_MASK != ForwardingMethod.TUNNEL:
        kind, port, flags = 0, 0, 0
    elif kind in _HEEDED:
        port, flags = port if kind == TunnelType.GUE else 0, flags & _HEEDED[kind]
    return (*row[: _TUNNEL_AT.start], kind, port, flags, *row[_TUNNEL_AT.stop :])


def destination(row: Row) -> Destination:
    """The value of a row of either kind. Raises DecodeError for a family that there is not."""
    packed, port, method, weight, kind, tunnel_port, flags, upper, lower = row[: len(_SETTINGS)]
    family = family_seen(row[-1] if len(row) == len(CONFIGURED) else row[_FAMILY])
    forwarding = ForwardingMethod.seen(method & FWD_MASK)
    tunnel = None
    if forwarding is ForwardingMethod.TUNNEL:
        tunnel = trusted(Tunnel, TunnelType.seen(kind), socket.ntohs(tunnel_port), flags)
    address, number = text_of(packed, family), socket.ntohs(port)
    return trusted(Destination, address, number, weight, forwarding, upper, lower, tunnel, family, packed)


def status(row: Row) -> DestinationStatus:
    """The value of a row of FIELDS. Raises DecodeError for a family that there is not."""
    active, inactive, persistent = row[len(_SETTINGS) : _FAMILY]
    return DestinationStatus(destination(row), active, inactive, persistent, Stats(*row[_FAMILY + 1 :]))


_NO_TUNNEL = Tunnel()
