"""What a request may look like on the wire: the strict scan of a head before any parser; error answers.

Mirrors RFC 9112 (HTTP/1.1), read strictly: whatever two parsers could understand differently is refused, so
that no proxy in front can be made to disagree with us about where a request ends (request smuggling).
Does not: touch sockets, or know routes.
"""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

HEAD_LIMIT = 16 * 1024
TARGET_LIMIT = 4 * 1024
BODY_LIMIT = 1024 * 1024

HEAD_END = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

SECURITY = [
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Referrer-Policy", b"no-referrer"),
]
"""Header fields that every answer has: no browser takes it for something else, frames it, or lets another site read it."""
_SECURITY_LINES = b"".join(b"%s: %s\r\n" % field for field in SECURITY)
RETRY_AFTER_S = 1

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\Z")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)\Z")
_REQUEST_LINE_REST = 64  # method, spaces and version beside the target

# Fields that two readers could take from different copies; a repeated one is refused.
_SINGLE = frozenset({b"host", b"content-length", b"content-type", b"authorization", b"expect"})


class ProtocolError(Exception):
    """A request that is refused unread; `status` is the status line's code and phrase, `str()` a sentence."""

    def __init__(self, status: str, message: str) -> None:
        """`status` as in `400 Bad Request`."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """What the connection must know of a request's head.

    `size`: bytes it took on the wire, blank line included; `text`: what the parser is given (see
    `_is_for_parser`); `closes`: the client wants no further request on this connection; `host`: its Host header.
    """

    size: int
    text: bytes
    body_size: int
    method: bytes
    expects_continue: bool
    closes: bool
    host: str | None


def scan(received: bytes | bytearray) -> Head | None:
    """The head at the beginning of `received`, None while it is incomplete. Raises ProtocolError."""
    end = received.find(HEAD_END, 0, HEAD_LIMIT)
    head = bytes(received[: HEAD_LIMIT if end < 0 else end])
    _check_line_ends(head, complete=end >= 0)
    request_line, _, rest = head.partition(b"\r\n")  # no more while it drips: splitting 5000 fields takes 100 us
    if len(request_line) > TARGET_LIMIT + _REQUEST_LINE_REST:
        raise ProtocolError("414 URI Too Long", f"the request's target is longer than {TARGET_LIMIT} bytes")
    if end < 0:
        if len(received) >= HEAD_LIMIT:
            raise ProtocolError(
                "431 Request Header Fields Too Large", f"the request's head is longer than {HEAD_LIMIT} bytes"
            )
        return None
    return _understood(request_line, rest.split(b"\r\n") if rest else [], end + len(HEAD_END))


def answer(status: str, message: str, *, with_body: bool = True) -> bytes:
    """A whole error answer that ends the connection; without its body for HEAD."""
    body = json.dumps({"error": message}, separators=(",", ":")).encode() + b"\n"
    again = f"Retry-After: {RETRY_AFTER_S}\r\n" if status.startswith("503") else ""
    head = (
        f"HTTP/1.1 {status}\r\n"
        f"Content-Type: application/json; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        f"Date: {email.utils.formatdate(usegmt=True)}\r\nConnection: close\r\n{again}"
    )
    return head.encode("ascii") + _SECURITY_LINES + b"\r\n" + (body if with_body else b"")


def _bad(message: str) -> ProtocolError:
    return ProtocolError("400 Bad Request", message)


def _check_line_ends(head: bytes, *, complete: bool) -> None:
    """Bare CR or LF is refused (RFC 9112 2.2). Counting is fast enough for every byte that drips."""
    pairs = head.count(b"\r\n")
    if head.count(b"\n") != pairs or (complete and head.count(b"\r") != pairs):
        raise _bad("each line of the head must end with CRLF")


def _understood(request_line: bytes, field_lines: list[bytes], size: int) -> Head:
    match = _REQUEST_LINE.match(request_line)
    if match is None:
        raise _bad("malformed request line: METHOD TARGET HTTP/1.1 wanted")
    method, target, major, minor = match.groups()
    if (major, minor) not in ((b"1", b"1"), (b"1", b"0")):
        raise ProtocolError("505 HTTP Version Not Supported", "HTTP/1.1 or HTTP/1.0 wanted")
    if len(target) > TARGET_LIMIT:
        raise ProtocolError("414 URI Too Long", f"the request's target is longer than {TARGET_LIMIT} bytes")
    _check_target(target)
    fields = dict(_fields(field_lines))
    modern = minor == b"1"
    if modern and b"host" not in fields:
        raise _bad("HTTP/1.1 needs a Host header")
    return Head(
        size=size,
        text=b"\r\n".join([request_line, *filter(_is_for_parser, field_lines)]) + HEAD_END,
        body_size=_body_size(fields),
        method=method,
        expects_continue=modern and _expects_continue(fields),
        closes=b"close" in _options(fields.get(b"connection", b"")),
        host=fields[b"host"].decode("latin-1") if b"host" in fields else None,
    )


def _check_target(target: bytes) -> None:
    """A path, `*`, or a whole URL (RFC 9112, 3.2) that cheroot can take apart."""
    try:
        urlsplit(target)
    except ValueError:  # half an IPv6 address
        raise _bad("malformed target: a path or a URL wanted") from None


def _fields(lines: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Name in lower case and value of each field; of repeated ones that may be repeated, each."""
    seen: set[bytes] = set()
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise _bad("a header must not be continued on a second line")  # obs-fold, RFC 9112 5.2
        match = _FIELD.match(line)
        if match is None:
            raise _bad("malformed header: a name, a colon directly after it and printable text wanted")
        name, value = match[1].lower(), match[2].strip(b" \t")
        if name in seen and name in _SINGLE:
            raise _bad(f"header {name.decode()} must not be repeated")
        seen.add(name)
        yield name, value


def _is_for_parser(line: bytes) -> bool:
    """False for Expect, which cheroot would answer a second time, and for names with `_`.

    In the environ `Content_Length` and `Content-Length` are one key. cheroot's DropUnderscoreHeaderReader would
    drop such names, but in 11.1 it raises TypeError for every request.
    """
    name = line.partition(b":")[0].lower()
    return name != b"expect" and b"_" not in name


def _body_size(fields: dict[bytes, bytes]) -> int:
    """The body's length in bytes. Only digits are understood; int() alone would read `+3` and `1_0`."""
    if b"transfer-encoding" in fields:
        raise ProtocolError(
            "411 Length Required", "a body needs Content-Length; Transfer-Encoding is not accepted"
        )
    text = fields.get(b"content-length", b"0")
    if not text.isdigit():
        raise _bad("Content-Length must be one whole number")
    if len(text) > len(str(BODY_LIMIT)) or int(text) > BODY_LIMIT:
        raise ProtocolError("413 Content Too Large", f"the body is longer than {BODY_LIMIT} bytes")
    return int(text)


def _expects_continue(fields: dict[bytes, bytes]) -> bool:
    expectation = fields.get(b"expect")
    if expectation is not None and expectation.lower() != b"100-continue":
        raise ProtocolError("417 Expectation Failed", "only Expect: 100-continue is understood")
    return expectation is not None


def _options(value: bytes) -> set[bytes]:
    return {option.strip().lower() for option in value.split(b",")}
