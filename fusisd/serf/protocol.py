"""Serf's RPC as bytes in, values out: no socket, no clock, no log.

The wire (serf cmd/serf/command/agent/ipc.go): msgpack objects one after the other, without lengths. A request is a header
{Command, Seq} and, for commands that take one, a body; an answer is a header {Error, Seq} and, for some commands, a body.
Which is which cannot be seen from the bytes, so `COMMANDS` says it and each Seq in flight remembers its row:

    none      a header only
    ok        a header, and a body when Error is empty (members, stats: an auth or handshake error has none)
    always    a header and a body even when Error is set (join, keys)
    records   a header, then for ever header and body (stream)

A header that nobody expects, or an object that is not what must come next, is a RemoteProtocolError: the connection is
of no use any more. Our own misuse is a LocalProtocolError. Nothing else escapes from here, whatever the bytes.
Text that is no UTF-8 (a tag may hold any bytes) survives by surrogateescape.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgpack

MAX_BUFFER = 16 << 20  # a list of 5,000 members is 0.9 MB (measured 2026-11)
VERSION = 1


class SerfProtocolError(Exception):
    """Base of both."""


class LocalProtocolError(SerfProtocolError):
    """We asked for something that the protocol does not have."""


class RemoteProtocolError(SerfProtocolError):
    """The agent sent something that the protocol does not have; close the connection."""


class Body(Enum):
    """What follows an answer's header."""

    NONE = "none"
    OK = "ok"
    ALWAYS = "always"
    RECORDS = "records"


@dataclass(frozen=True, slots=True)
class Row:
    """One command: the keys of its request body (None: it takes none, and must not be sent one) and its answer."""

    request: frozenset[str] | None
    answer: Body


def _takes(*keys: str) -> frozenset[str]:
    return frozenset(keys)


COMMANDS: Mapping[str, Row] = {
    "handshake": Row(_takes("Version"), Body.NONE),
    "auth": Row(_takes("AuthKey"), Body.NONE),
    "members": Row(None, Body.OK),
    "members-filtered": Row(_takes("Tags", "Status", "Name"), Body.OK),
    "join": Row(_takes("Existing", "Replay"), Body.ALWAYS),
    "leave": Row(None, Body.NONE),
    "force-leave": Row(_takes("Node", "Prune"), Body.NONE),
    "tags": Row(_takes("Tags", "DeleteTags"), Body.NONE),
    "event": Row(_takes("Name", "Payload", "Coalesce"), Body.NONE),
    "query": Row(
        _takes("FilterNodes", "FilterTags", "RequestAck", "RelayFactor", "Timeout", "Name", "Payload"), Body.RECORDS
    ),
    "respond": Row(_takes("ID", "Payload"), Body.NONE),
    "stream": Row(_takes("Type"), Body.RECORDS),
    "monitor": Row(_takes("LogLevel"), Body.RECORDS),
    "stop": Row(_takes("Stop"), Body.NONE),
    "stats": Row(None, Body.OK),
    "get-coordinate": Row(_takes("Node"), Body.OK),
    "list-keys": Row(None, Body.ALWAYS),
    "install-key": Row(_takes("Key"), Body.ALWAYS),
    "use-key": Row(_takes("Key"), Body.ALWAYS),
    "remove-key": Row(_takes("Key"), Body.ALWAYS),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request; `error` "" means that it was done."""

    seq: int
    command: str
    error: str
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that a stream, monitor or query brought."""

    seq: int
    command: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """A row of the member list. `address` is canonical text, `status` Serf's word: alive, leaving, left, failed."""

    name: str
    address: str
    port: int
    status: str
    tags: Mapping[str, str]


@dataclass(slots=True)
class _Expectation:
    command: str
    answer: Body
    answered: bool = False


class Connection:
    """One RPC connection's state: what was asked, what must come next."""

    def __init__(self) -> None:
        """A fresh connection; ask for `handshake` first."""
        self._unpacker = msgpack.Unpacker(
            raw=False, unicode_errors="surrogateescape", strict_map_key=False, max_buffer_size=MAX_BUFFER
        )
        self._in_flight: dict[int, _Expectation] = {}
        self._header: tuple[_Expectation, int, str] | None = None
        self._last_seq = 0
        self._broken = False

    def request(self, command: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """The Seq of a new request and the bytes to send. Raises LocalProtocolError."""
        row = COMMANDS.get(command)
        if row is None:
            raise LocalProtocolError(f"Serf has no command {command!r}")
        if (body is None) != (row.request is None):
            # a body that is not expected is read as the next header, and the command runs twice
            raise LocalProtocolError(f"{command} takes {'no' if row.request is None else 'a'} body")
        if body is not None and row.request is not None and not body.keys() <= row.request:
            raise LocalProtocolError(f"{command} takes {sorted(row.request)}, not {sorted(body)}")
        seq = self._last_seq + 1
        try:
            data = msgpack.packb({"Command": command, "Seq": seq})
            if body is not None:
                data += msgpack.packb(dict(body), unicode_errors="surrogateescape")
        except (TypeError, ValueError, OverflowError) as error:
            raise LocalProtocolError(f"{command}: a value that cannot be sent: {error}") from None
        self._last_seq = seq
        self._in_flight[seq] = _Expectation(command, row.answer)
        return seq, data

    def receive(self, data: bytes) -> list[Reply | Record]:
        """What the bytes complete, in order. Raises RemoteProtocolError, from then on for ever."""
        if self._broken:
            raise RemoteProtocolError("this connection is broken already")
        found: list[Reply | Record] = []
        try:
            self._unpacker.feed(data)
            for item in self._unpacker:
                value = self._take(item)
                if value is not None:
                    found.append(value)
        except RemoteProtocolError:
            self._broken = True
            raise
        except (msgpack.UnpackException, ValueError, TypeError, RecursionError, OverflowError) as error:
            # TypeError: a map with an unhashable key; ValueError and the others: what msgpack itself raises
            self._broken = True
            raise RemoteProtocolError(f"no msgpack that Serf would send: {error}") from None
        return found

    def forget(self, seq: int) -> None:
        """A stream was stopped, and the agent said so: nothing more comes for it."""
        self._in_flight.pop(seq, None)

    def _take(self, item: object) -> Reply | Record | None:
        if not isinstance(item, dict):
            raise RemoteProtocolError(f"a {type(item).__name__} where a map must be")
        if self._header is None:
            return self._take_header(item)
        expectation, seq, error = self._header
        self._header = None
        if expectation.answer is Body.RECORDS:
            return Record(seq, expectation.command, item)
        del self._in_flight[seq]
        return Reply(seq, expectation.command, error, item)

    def _take_header(self, item: Mapping[Any, Any]) -> Reply | None:
        seq, error = item.get("Seq"), item.get("Error")
        expectation = self._in_flight.get(seq) if type(seq) is int else None
        if expectation is None or not isinstance(error, str) or type(seq) is not int:
            raise RemoteProtocolError(f"an answer to nothing that was asked: {sorted(map(str, item))}")
        if expectation.answer is Body.RECORDS:
            return self._take_stream_header(expectation, seq, error)
        if expectation.answer is Body.ALWAYS or (expectation.answer is Body.OK and not error):
            self._header = (expectation, seq, error)
            return None
        del self._in_flight[seq]
        return Reply(seq, expectation.command, error)

    def _take_stream_header(self, expectation: _Expectation, seq: int, error: str) -> Reply | None:
        if not expectation.answered:
            expectation.answered = True
            if error:
                del self._in_flight[seq]
            return Reply(seq, expectation.command, error)
        self._header = (expectation, seq, error)
        return None


def members(body: Mapping[str, Any]) -> tuple[Member, ...]:
    """The members in the body of `members` or of a member event. Raises RemoteProtocolError."""
    rows = body.get("Members") or []
    if not isinstance(rows, list):
        raise RemoteProtocolError("Members is no list")
    return tuple(_member(row) for row in rows)


def _member(row: object) -> Member:
    if not isinstance(row, dict):
        raise RemoteProtocolError("a member is no map")
    name, status, tags, port = row.get("Name"), row.get("Status"), row.get("Tags") or {}, row.get("Port", 0)
    if not isinstance(name, str) or not isinstance(status, str) or not isinstance(tags, dict) or type(port) is not int:
        raise RemoteProtocolError("a member without name, status or tags")
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in tags.items()):
        raise RemoteProtocolError(f"member {name!r} has a tag that is no text")
    return Member(name, _address(row.get("Addr")), port, status, tags)


def _address(data: object) -> str:
    """Four or sixteen raw bytes; older agents send IPv4 as ::ffff:a.b.c.d."""
    if not isinstance(data, bytes) or len(data) not in (4, 16):
        raise RemoteProtocolError("an address that is not 4 or 16 bytes")
    address = ipaddress.ip_address(data)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
