"""Serf's RPC commands as a table: what a request must carry, and what comes back.

Which of it comes cannot be seen from the bytes, so the table says it (serf cmd/serf/command/agent/ipc.go):

    none      a header only
    ok        a header, and a body when Error is empty (members, stats)
    always    a header and a body even when Error is set (join, keys)
    records   a header, then header and body again and again until the connection, a `stop` or a query's "done" ends it

Two errors come before any command is looked at, and are a header only whatever the command (BARE_ERRORS).
A request is checked here because the agent does not: it hangs up without a word on bytes where it wants text, and reads a
body that it does not expect as the next header, which runs the command twice.
Does not: know bytes (protocol.py) or what a body means (values.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fusisd.serf.errors import SerfMisuse

VERSION = 1
HANDSHAKE_REQUIRED = "Handshake required"
AUTHENTICATION_REQUIRED = "Authentication required"
BARE_ERRORS = (HANDSHAKE_REQUIRED, AUTHENTICATION_REQUIRED)

BROADCAST_S = 5.0  # serf/config.go BroadcastTimeout: how long the agent tries to tell the others
LEAVE_S = BROADCAST_S + 1.0  # and LeavePropagateDelay
JOIN_S = 30.0  # memberlist TCPTimeout is 10 s, for each address that drops packets
KEYS_S = 13.0  # a query to all, which waits for failed nodes: 3.2 s x log10 of 5,000 nodes (serf.DefaultQueryTimeout)


class Body(Enum):
    """What follows an answer's header."""

    NONE = "none"
    OK = "ok"
    ALWAYS = "always"
    RECORDS = "records"


@dataclass(frozen=True, slots=True)
class Kind:
    """A Go type as we may fill it."""

    word: str
    fits: Callable[[object], bool]


def _number(word: str, low: int, high: int) -> Kind:
    return Kind(word, lambda value: type(value) is int and low <= value <= high)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_text_map(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, (*value, *value.values())))


TEXT = Kind("text", _is_text)
DATA = Kind("bytes", lambda value: isinstance(value, bytes | str))
FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXTS = Kind("a list of text", _are_texts)
TEXT_MAP = Kind("a map from text to text", _is_text_map)
BYTE = _number("a number from 0 to 255", 0, 2**8 - 1)
NANOSECONDS = _number("nanoseconds", 0, 2**63 - 1)
COUNT = _number("a number from 0 to 2**64-1", 0, 2**64 - 1)

Fields = Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class Row:
    """One command. `needs` None: it takes no body and must not be sent one. `takes_s`: how long the agent itself may be
    busy with it, beyond the time that any answer takes."""

    answer: Body
    needs: Fields | None = None
    may: Fields = field(default_factory=dict)
    takes_s: float = 0.0


COMMANDS: Mapping[str, Row] = {
    "handshake": Row(Body.NONE, {"Version": COUNT}),
    "auth": Row(Body.NONE, {"AuthKey": TEXT}),
    "members": Row(Body.OK),
    "members-filtered": Row(Body.OK, {}, {"Tags": TEXT_MAP, "Status": TEXT, "Name": TEXT}),
    "join": Row(Body.ALWAYS, {"Existing": TEXTS}, {"Replay": FLAG}, JOIN_S),
    "leave": Row(Body.NONE, takes_s=LEAVE_S),
    "force-leave": Row(Body.NONE, {"Node": TEXT}, {"Prune": FLAG}, BROADCAST_S),
    "tags": Row(Body.NONE, {}, {"Tags": TEXT_MAP, "DeleteTags": TEXTS}, BROADCAST_S),
    "event": Row(Body.NONE, {"Name": TEXT}, {"Payload": DATA, "Coalesce": FLAG}),
    "query": Row(
        Body.RECORDS,
        {"Name": TEXT},
        {
            "FilterNodes": TEXTS,
            "FilterTags": TEXT_MAP,
            "RequestAck": FLAG,
            "RelayFactor": BYTE,
            "Timeout": NANOSECONDS,
            "Payload": DATA,
        },
    ),
    "respond": Row(Body.NONE, {"ID": COUNT}, {"Payload": DATA}),
    "stream": Row(Body.RECORDS, {"Type": TEXT}),
    "monitor": Row(Body.RECORDS, {"LogLevel": TEXT}),
    "stop": Row(Body.NONE, {"Stop": COUNT}),
    "stats": Row(Body.OK),
    "get-coordinate": Row(Body.OK, {"Node": TEXT}),
    "list-keys": Row(Body.ALWAYS, takes_s=KEYS_S),
    "install-key": Row(Body.ALWAYS, {"Key": TEXT}, takes_s=KEYS_S),
    "use-key": Row(Body.ALWAYS, {"Key": TEXT}, takes_s=KEYS_S),
    "remove-key": Row(Body.ALWAYS, {"Key": TEXT}, takes_s=KEYS_S),
}


def checked(command: str, body: Mapping[str, Any] | None) -> Row:
    """The command's row, when this request fits it. Raises SerfMisuse, which never shows a value (one is a secret)."""
    row = COMMANDS.get(command) if isinstance(command, str) else None
    if row is None:
        raise SerfMisuse(f"Serf has no command {command!r}")
    if (body is None) != (row.needs is None):
        raise SerfMisuse(f"{command} takes {'no' if row.needs is None else 'a'} body")
    if body is not None and not isinstance(body, Mapping):
        raise SerfMisuse(f"{command}: a body is a map, not this {type(body).__name__}")
    if body is None or row.needs is None:
        return row
    known = {**row.needs, **row.may}
    if missing := row.needs.keys() - body.keys():
        raise SerfMisuse(f"{command} lacks {', '.join(sorted(missing))}")
    for key, value in body.items():
        if key not in known:
            raise SerfMisuse(f"{command} takes {', '.join(sorted(known))}, not {key!r}")
        if not known[key].fits(value):
            raise SerfMisuse(f"{command}: {key} must be {known[key].word}, not this {type(value).__name__}")
    return row
