"""An HTTP answer, read as far as a check needs it: bytes in, a verdict out.

Reads leniently what RFC 9112 asks of a server (bare LF, keep-alive against our wish), but bounded: `HEAD_LIMIT` bytes of
head, interim answers (1xx) among them, `BODY_LIMIT` bytes of body, each byte looked at once.
Does not: touch a socket, or know the time.
"""

from __future__ import annotations

import re

from fusisd.health.asking import Failed, shown

HEAD_LIMIT = 64 * 1024
BODY_LIMIT = 64 * 1024

_BEGINNING = b"HTTP/1."
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9][0-9])(?:[ \r\n]|\Z)")
_HEAD_END = re.compile(rb"\n\r?\n")
_CHUNKED = re.compile(rb"\ntransfer-encoding[ \t]*:[^\n]*\bchunked\b", re.IGNORECASE)
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r?\n", re.IGNORECASE)
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[^\n]{0,256}\n")
_CHUNK_LINE_LIMIT = 300


class Answer:
    """Fed with what arrives until `feed` or `end` says that the check passed, or raises Failed."""

    def __init__(self, codes: tuple[tuple[int, int], ...], wanted: bytes, method: str = "GET") -> None:
        """`codes`: ranges, both ends in; `wanted`: must be found in the body, b"" = anything."""
        self._codes, self._wanted, self._method = codes, wanted, method
        self._head: bytearray | None = bytearray()
        self._head_size = self._searched = 0
        self._body: _Body | None = None

    def feed(self, data: bytes) -> bool:
        """The answer goes on so; True when the check passed and nothing more is of interest. Raises Failed."""
        while self._head is not None:
            self._head += data
            rest = self._head_read()
            if rest is None:
                return False
            if self._head is None and not self._wanted:
                return True
            data = rest
        assert self._body is not None
        self._body.feed(data)
        if self._wanted in self._body.window(len(self._wanted)):
            return True
        if self._body.over:
            raise Failed(self._body.trouble or f"the answer's body lacks {shown(self._wanted)}")
        return False

    def end(self) -> None:
        """The server closed. Raises Failed, always: had the check passed, nobody would read on."""
        if self._head is None:
            raise Failed(f"the answer's body lacks {shown(self._wanted)}")
        if self._head:
            raise Failed("closed the connection in the midst of the answer's head")
        raise Failed("closed the connection without an answer")

    def _head_read(self) -> bytes | None:
        """What follows the head, once it is whole; an interim answer's leaves an empty head to be read anew."""
        head = self._head
        assert head is not None
        if not head.startswith(_BEGINNING[: len(head)]):
            raise Failed(f"does not speak HTTP/1: {shown(bytes(head))}")
        end = _HEAD_END.search(head, max(0, self._searched - 3))
        self._searched = len(head)
        if self._head_size + (end.end() if end else len(head)) > HEAD_LIMIT:
            raise Failed(f"the answer's head is longer than {HEAD_LIMIT} bytes")
        if end is None:
            return None
        rest, whole = bytes(head[end.end() :]), bytes(head[: end.end()])
        self._head_size, self._searched = self._head_size + len(whole), 0
        self._head = self._understood(whole)
        return rest

    def _understood(self, head: bytes) -> bytearray | None:
        """None when this was the head; an empty one when it was an interim answer's and the real one follows."""
        match = _STATUS.match(head)
        if match is None:
            raise Failed(f"does not speak HTTP/1: {shown(head)}")
        status = int(match[1])
        if 100 <= status < 200 and status != 101:
            return bytearray()
        if not any(low <= status <= high for low, high in self._codes):
            raise Failed(f"answered {status}")
        if self._method == "HEAD" or status in (204, 304):
            self._body = _Body(0)
        elif _CHUNKED.search(head):
            self._body = _Body(None, chunked=True)
        else:
            length = _LENGTH.search(head)
            self._body = _Body(int(length[1]) if length else None)
        return None


class _Body:
    """The first `BODY_LIMIT` bytes of a body, out of their chunks."""

    def __init__(self, length: int | None, chunked: bool = False) -> None:
        """`length` None: until the connection ends, or the last chunk."""
        self._chunked = chunked
        self._left = BODY_LIMIT if length is None else min(length, BODY_LIMIT)
        self._text, self._new = bytearray(), 0
        self._raw, self._chunk, self._last = b"", 0, False
        self.trouble = ""

    @property
    def over(self) -> bool:
        """Nothing more of it is of interest."""
        return self._left <= 0 or self._last or bool(self.trouble)

    def window(self, overlap: int) -> bytes:
        """What the last feed brought, with so much before it that a text across the border is found."""
        return bytes(self._text[max(0, self._new - overlap) :])

    def feed(self, data: bytes) -> None:
        """More of the body as it came over the wire."""
        self._new = len(self._text)
        if self._chunked:
            self._unchunked(self._raw + data)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        data = data[: self._left]
        self._text += data
        self._left -= len(data)

    def _unchunked(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self.over:
            if self._chunk:
                piece = data[at : at + self._chunk]
                self._take(piece)
                self._chunk -= len(piece)
                at += len(piece)
            elif data[at] in b"\r\n":  # after a chunk
                at += 1
            elif match := _CHUNK.match(data, at):
                self._chunk = int(match[1], 16)
                self._last = not self._chunk
                at = match.end()
            elif len(data) - at > _CHUNK_LINE_LIMIT or b"\n" in data[at : at + _CHUNK_LINE_LIMIT]:
                self.trouble = f"the answer's chunks are garbled: {shown(data[at:])}"
            else:
                break
        self._raw = data[at:]
