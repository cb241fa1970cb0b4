"""Serf's RPC as bytes in, answers and records out: no socket, no clock, no log.

The wire: msgpack objects one after the other, without lengths. A request is a header {Command, Seq} and, for commands that
take one, a body; an answer is a header {Error, Seq} and, for some commands, a body. Each Seq in flight remembers its row
of messages.COMMANDS, which says what must come next.

A header that nobody expects, or an object that is not what must come, is a SerfProtocolError: from then on the connection is
of no use. Our own misuse is a SerfMisuse. Nothing else escapes from here, whatever the bytes, and no bytes make it
hold more than MAX_OBJECT of them (as Python objects they may take sixty times that: who speaks here is our own agent).
Text that is no UTF-8 (a tag may hold any bytes) survives by surrogateescape.
Does not: know what bodies mean (values.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from fusisd.serf.errors import SerfMisuse, SerfProtocolError
from fusisd.serf.messages import AUTHENTICATION_REQUIRED, BARE_ERRORS, Body, checked

MAX_OBJECT = 16 << 20  # bytes; a list of 5,000 members is 0.9 MB (measured 2026-11)
MAX_ROWS = 1 << 16  # of one list or map: space is set aside for as many as its head claims


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


@dataclass(slots=True)
class _Expectation:
    """What a Seq in flight is for, and how far it has come."""

    command: str
    answer: Body
    has_body: bool
    stops: int | None = None  # the Seq that a `stop` ends
    answered: bool = False
    stopped: bool = False
    echo: bool = False  # it was refused before its body was read, so the body is answered by the same error once more


class Connection:
    """One RPC connection's state: what was asked, what must come next."""

    def __init__(self) -> None:
        """A fresh connection; ask for `handshake` first."""
        self._unpacker = msgpack.Unpacker(
            raw=False,
            unicode_errors="surrogateescape",
            strict_map_key=False,
            max_buffer_size=MAX_OBJECT,
            max_array_len=MAX_ROWS,
            max_map_len=MAX_ROWS,
            max_ext_len=0,
        )
        self._in_flight: dict[int, _Expectation] = {}
        self._header: tuple[_Expectation, int, str] | None = None
        self._last_seq = 0
        self._unfinished = 0  # bytes since the last whole object
        self._broken = False

    def request(self, command: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """The Seq of a new request and the bytes to send; the next may follow before the answer. Raises SerfMisuse."""
        row = checked(command, body)
        if (command == "handshake") != (self._last_seq == 0):
            raise SerfMisuse("the first request on a connection, and no other, is handshake")
        seq = self._last_seq + 1
        try:
            data = bytes(msgpack.packb({"Command": command, "Seq": seq}))
            if body is not None:
                data += msgpack.packb(_plain(body), unicode_errors="surrogateescape")
        except ValueError as error:  # text with half of a surrogate pair, which is no text at all
            raise SerfMisuse(f"{command}: text that cannot be sent: {type(error).__name__}") from None
        self._last_seq = seq
        stops = body["Stop"] if command == "stop" and body is not None else None
        self._in_flight[seq] = _Expectation(command, row.answer, body is not None, stops)
        return seq, data

    def receive(self, data: bytes) -> list[Reply | Record]:
        """What the bytes complete, in order. Raises SerfProtocolError, from then on for ever."""
        if self._broken:
            raise SerfProtocolError("this connection is broken already")
        found: list[Reply | Record] = []
        try:
            self._unpacker.feed(data)
            self._unfinished += len(data)
            for item in self._unpacker:
                self._unfinished = 0
                value = self._take(item)
                if value is not None:
                    found.append(value)
            if self._unfinished > MAX_OBJECT:
                raise SerfProtocolError(f"an object of more than {MAX_OBJECT} bytes")
        except SerfProtocolError:
            self._broken = True
            raise
        except (msgpack.UnpackException, ValueError, TypeError, RecursionError, OverflowError) as error:
            # TypeError: a map with an unhashable key; ValueError and the others: what msgpack itself raises
            self._broken = True
            raise SerfProtocolError(f"no msgpack that Serf would send: {error}") from None
        return found

    def _take(self, item: object) -> Reply | Record | None:
        if not isinstance(item, dict):
            raise SerfProtocolError(f"a {type(item).__name__} where a map must be")
        if self._header is None:
            return self._take_header(item)
        (expectation, seq, error), self._header = self._header, None
        if expectation.answer is not Body.RECORDS:
            return self._done(expectation, seq, error, item)
        if expectation.command == "query" and item.get("Type") == "done":
            del self._in_flight[seq]
        # what was on its way when the agent stopped the stream is nobody's any more
        return None if expectation.stopped else Record(seq, expectation.command, item)

    def _take_header(self, item: Mapping[Any, Any]) -> Reply | None:
        seq, error = item.get("Seq"), item.get("Error")
        expectation = self._in_flight.get(seq) if type(seq) is int else None
        if expectation is None or not isinstance(error, str) or type(seq) is not int:
            raise SerfProtocolError(f"an answer to nothing that was asked: {_names(item)}")
        if expectation.echo:
            if error != AUTHENTICATION_REQUIRED:
                raise SerfProtocolError(f"a second answer to {expectation.command}")
            del self._in_flight[seq]
            return None
        if self._has_body(expectation, error):
            self._header = (expectation, seq, error)
            return None
        return self._done(expectation, seq, error)

    def _has_body(self, expectation: _Expectation, error: str) -> bool:
        """Whether a body follows this header."""
        match expectation.answer:
            case Body.RECORDS:
                return expectation.answered
            case Body.ALWAYS:
                return error not in BARE_ERRORS
            case Body.OK:
                return not error
        return False

    def _done(self, expectation: _Expectation, seq: int, error: str, body: Mapping[str, Any] | None = None) -> Reply:
        """The request is answered; what is still to come of it is remembered."""
        expectation.answered = True
        expectation.echo = error == AUTHENTICATION_REQUIRED and expectation.has_body
        if not expectation.echo and (expectation.answer is not Body.RECORDS or error):
            del self._in_flight[seq]
        stopped = self._in_flight.get(expectation.stops) if expectation.stops is not None and not error else None
        if stopped is not None:
            stopped.stopped = True
        return Reply(seq, expectation.command, error, body or {})


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    """With dicts for whatever mappings there are: msgpack takes no other."""
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in body.items()}


def _names(item: Mapping[Any, Any]) -> str:
    """A map's keys as text that is short."""
    return ", ".join(sorted(str(key) for key in item))[:200]
