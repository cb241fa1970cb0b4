"""DNS: is a question answered with a record of its type (RFC 1035, over UDP)?

`question` and `verdict` are pure; a datagram that does not carry the question's id is nobody's answer and passed over.
Does not: check what the record says, or ask again over TCP when an answer was truncated.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct

from fusisd.health.asking import Failed, Way, opened
from fusisd.model import CheckTarget

# IANA, Domain Name System parameters: the types that a check may ask for.
RECORDS = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "NAPTR": 35}
RECORDS |= {"DS": 43, "DNSKEY": 48, "SVCB": 64, "HTTPS": 65, "CAA": 257}

_CODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
_HEAD = struct.Struct(">6H")
_RECORD = struct.Struct(">HHIH")  # type, class, time to live, length
_RECURSE, _ANSWER, _TRUNCATED = 0x0100, 0x8000, 0x0200
_INTERNET = 1


async def ask(target: CheckTarget, way: Way) -> None:
    """Returns when the answer was as expected. Raises Failed, OSError."""
    number, kind = secrets.randbits(16), RECORDS.get(target.spec.record.upper())
    if kind is None:
        raise Failed(f"the check itself is wrong: record must be one of {', '.join(RECORDS)}")
    loop, query = asyncio.get_running_loop(), question(target.spec.name, kind, number)
    with opened(target, socket.SOCK_DGRAM, way) as sock:
        await loop.sock_connect(sock, (target.address, target.port))
        await loop.sock_sendall(sock, query)
        while (said := verdict(await loop.sock_recv(sock, 65535), kind, number)) is None:
            await asyncio.sleep(0)  # a flood of others' datagrams is no reason to keep the loop
    if said:
        raise Failed(said)


def question(name: str, kind: int, number: int) -> bytes:
    """The query for this name and type. Raises Failed for what is no name."""
    labels = name.rstrip(".").split(".") if name.rstrip(".") else []
    if not name.isascii() or not all(1 <= len(label) <= 63 for label in labels) or len(name) > 253:
        raise Failed(f"the check itself is wrong: {name!r} is no name to ask for")
    wire = b"".join(bytes([len(label)]) + label.encode("ascii") for label in labels)
    return _HEAD.pack(number, _RECURSE, 1, 0, 0, 0) + wire + b"\0" + struct.pack(">HH", kind, _INTERNET)


def verdict(data: bytes, kind: int, number: int) -> str | None:
    """What an answer is worth: "" passes, else why not; None when it is no answer to this query."""
    if len(data) < _HEAD.size:
        return None
    got, flags, questions, answers, _, _ = _HEAD.unpack_from(data)
    if got != number or not flags & _ANSWER:
        return None
    code = flags & 15
    if code:
        return f"answered {_CODES[code] if code < len(_CODES) else f'error {code}'}"
    try:
        if kind in _types(data, questions, answers):
            return ""
    except (IndexError, struct.error):
        if not flags & _TRUNCATED:
            return "answered a message that cannot be read"
    return "answered without a record of that type"


def _types(data: bytes, questions: int, answers: int) -> list[int]:
    """The types of the records in the answer section. Raises IndexError, struct.error."""
    at, found = _HEAD.size, []
    for _ in range(questions):
        at = _after_name(data, at) + 4
    for _ in range(answers):
        at = _after_name(data, at)
        kind, _, _, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size + length
        if at > len(data):
            raise IndexError
        found.append(kind)
    return found


def _after_name(data: bytes, at: int) -> int:
    """The place after a name: labels up to an empty one or a pointer, which is not followed."""
    while size := data[at]:
        if size >= 0xC0:
            return at + 2
        at += 1 + size
    return at + 1
