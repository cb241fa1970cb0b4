"""What the bodies of answers and records mean, as frozen values.

Go's nil arrives as None and is what Go takes it for: an empty list, map, text or byte string. Bytes come as msgpack bin or,
from an agent of the old msgpack, as text; surrogateescape makes both the same bytes. What has the wrong type is a
SerfProtocolError and nothing else is raised, whatever the body. An address of an odd length is not: another node may have
made it up, and it must not hide the rest of the list; it is shown as Go shows it (net.IP.String), which is no address.
Does not: judge what a member is good for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fusisd.serf.errors import SerfProtocolError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Member:
    """A row of the member list. `address` is canonical text, `status` Serf's word: alive, leaving, left, failed."""

    name: str
    address: str
    port: int
    status: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MemberEvent:
    """`kind`: member-join, -leave, -failed, -update or -reap. It repeats, goes missing and may show an old status:
    a reason to list, never the truth."""

    kind: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class UserEvent:
    """A user event; nothing says who sent it. `ltime` is Lamport time."""

    name: str
    payload: bytes
    ltime: int
    coalesce: bool


@dataclass(frozen=True, slots=True)
class QueryEvent:
    """A query that asks us; `id` is what `respond` wants, good on this connection alone."""

    id: int
    name: str
    payload: bytes
    ltime: int


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """An event of a kind that a newer Serf has."""

    kind: str


Event = MemberEvent | UserEvent | QueryEvent | OtherEvent


@dataclass(frozen=True, slots=True)
class QueryAck:
    """Node `sender` has our query."""

    sender: str


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """What node `sender` answers to our query."""

    sender: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class QueryDone:
    """The query's time is over; it comes then and not before, however many have answered."""


Answer = QueryAck | QueryResponse | QueryDone


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the agent's log."""

    text: str


@dataclass(frozen=True, slots=True)
class KeyReport:
    """What the nodes said to a command about gossip keys. `keys`: how many nodes have which (secret: not in the repr);
    `messages`: what those said who had something to say; of `nodes`, `responses` answered and `errors` refused."""

    keys: Mapping[str, int] = field(repr=False)
    messages: Mapping[str, str]
    nodes: int
    responses: int
    errors: int


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A node's place in Serf's map of round-trip times, in seconds."""

    vector: tuple[float, ...]
    error: float
    adjustment: float
    height: float


def members(body: Mapping[str, Any]) -> tuple[Member, ...]:
    """The members in the body of `members` or of a member event. Raises SerfProtocolError."""
    return tuple(map(_member, _get(body, "Members", list)))


def joined(body: Mapping[str, Any]) -> int:
    """How many addresses answered a `join`. Raises SerfProtocolError."""
    return _get(body, "Num", int)


def stats(body: Mapping[str, Any]) -> Mapping[str, Mapping[str, str]]:
    """Groups of named numbers, all as text. Raises SerfProtocolError."""
    groups = {name: _as(group, dict, f"stats {name!r}") for name, group in body.items()}
    return {_as(name, str, "a name"): _texts(group, f"stats {name!r}") for name, group in groups.items()}


def coordinate(body: Mapping[str, Any]) -> Coordinate | None:
    """None: the node is not known, or the agent keeps no coordinates. Raises SerfProtocolError."""
    if not _get(body, "Ok", bool):
        return None
    found = _get(body, "Coord", dict)
    vector = tuple(_as(part, float, "Vec") for part in _get(found, "Vec", list))
    return Coordinate(vector, _get(found, "Error", float), _get(found, "Adjustment", float), _get(found, "Height", float))


def keys(body: Mapping[str, Any]) -> KeyReport:
    """What a command about keys brought, refused or not. Raises SerfProtocolError."""
    counts = {_as(key, str, "a key"): _as(number, int, "a key's count") for key, number in _get(body, "Keys", dict).items()}
    messages = _texts(_get(body, "Messages", dict), "Messages")
    return KeyReport(counts, messages, _get(body, "NumNodes", int), _get(body, "NumResp", int), _get(body, "NumErr", int))


def event(body: Mapping[str, Any]) -> Event:
    """A record of a `stream`. Raises SerfProtocolError."""
    kind = _get(body, "Event", str)
    if kind.startswith("member-"):
        return MemberEvent(kind, members(body))
    if kind == "user":
        name, payload = _get(body, "Name", str), _bytes(body.get("Payload"))
        return UserEvent(name, payload, _get(body, "LTime", int), _get(body, "Coalesce", bool))
    if kind == "query":
        name, payload = _get(body, "Name", str), _bytes(body.get("Payload"))
        return QueryEvent(_get(body, "ID", int), name, payload, _get(body, "LTime", int))
    return OtherEvent(kind)


def answer(body: Mapping[str, Any]) -> Answer:
    """A record of a `query`. Raises SerfProtocolError."""
    kind = _get(body, "Type", str)
    if kind == "done":
        return QueryDone()
    sender = _get(body, "From", str)
    if kind == "ack":
        return QueryAck(sender)
    if kind == "response":
        return QueryResponse(sender, _bytes(body.get("Payload")))
    raise SerfProtocolError(f"an answer to a query of type {kind[:40]!r}")


def log_line(body: Mapping[str, Any]) -> LogLine:
    """A record of a `monitor`. Raises SerfProtocolError."""
    return LogLine(_get(body, "Log", str))


RECORDS: Mapping[str, Callable[[Mapping[str, Any]], Event | Answer | LogLine]] = {
    "stream": event,
    "query": answer,
    "monitor": log_line,
}


def _member(row: object) -> Member:
    if not isinstance(row, dict):
        raise SerfProtocolError("a member is no map")
    name, status, port, tags = row.get("Name"), row.get("Status"), row.get("Port") or 0, row.get("Tags") or {}
    if not isinstance(name, str) or not isinstance(status, str) or type(port) is not int or not isinstance(tags, dict):
        raise SerfProtocolError("a member without name, status, port or tags")
    for key, value in tags.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise SerfProtocolError(f"member {name!r} has a tag that is no text")
    return Member(name, _address(row.get("Addr")), port, status, tags)


def _address(value: object) -> str:
    """Four or sixteen raw bytes; older agents send IPv4 as ::ffff:a.b.c.d."""
    data = _bytes(value)
    if len(data) == 4:
        return f"{data[0]}.{data[1]}.{data[2]}.{data[3]}"  # most of a long list; ipaddress takes ten times as long
    if len(data) != 16:
        return f"?{data.hex()}" if data else "<nil>"
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)


def _bytes(value: object) -> bytes:
    if value is None or isinstance(value, bytes):
        return value or b""
    if not isinstance(value, str):
        raise SerfProtocolError(f"a {type(value).__name__} where bytes must be")
    return value.encode("utf-8", "surrogateescape")


def _texts(found: Mapping[Any, Any], what: str) -> dict[str, str]:
    return {_as(key, str, what): _as(value, str, what) for key, value in found.items()}


def _get(body: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """The value of this key; what is nil or absent is Go's zero value."""
    value = body.get(key)
    return kind() if value is None else _as(value, kind, key)


def _as(value: object, kind: type[T], what: str) -> T:
    """The value, when it is of exactly this type: True is no number."""
    if type(value) is not kind:
        raise SerfProtocolError(f"{what} is a {type(value).__name__}, not a {kind.__name__}")
    return value
