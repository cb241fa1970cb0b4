"""Where each value stands in a message of one shape, learnt from an example, to read the many like it at once.

A kernel sends every destination with the same attributes in the same order, so that the messages of a dump differ
in their values alone. `Layout` remembers one message: the places of the values as one struct.Struct, and all that
must not differ (lengths and types of message and attributes) as a mask and a pattern, which are compared for a
whole buffer in one step. What does not fit is left to wire.unpack, which walks any message and is the reference.
Does not: receive anything, or make objects.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pyipvs.framing import ANSWER_HEADER
from pyipvs.wire import HEADER, Table

Row = tuple[Any, ...]
_Place = tuple[int, str, str]  # offset, field, struct format


class Layout:
    """One shape of message; `fields` names the values of its rows in the order in which they stand."""

    def __init__(self, message: bytes, tables: Mapping[str, Table], wanted: Collection[str]) -> None:
        """Learn from `message`, headers included. `tables`: "" is that of the first level, the others those below
        the attribute that they are named by. `wanted`: the fields to read. Raises struct.error for no message, and
        for one of which the walk would make something else: a value of a wrong size, an attribute that comes twice."""
        if len(message) % 4:  # what follows it would not begin where it ends
            raise struct.error(f"a message of {len(message)} bytes")
        constant = bytearray(len(message))
        constant[:6] = b"\xff" * 6  # length and type of the message; its flags, sequence and port may differ
        places = list(_places(message, ANSWER_HEADER, len(message), tables, "", constant))
        if len({field for _, field, _ in places}) < len(places):
            raise struct.error("an attribute comes twice")
        read = [place for place in places if place[1] in wanted]
        self.fields = tuple(field for _, field, _ in read)
        self._size = len(message)
        self._struct = struct.Struct(_format(read, len(message)))
        self._mask = int.from_bytes(constant, "big")
        self._pattern = int.from_bytes(message, "big") & self._mask
        self._repeated = (1, self._mask, self._pattern)

    def row(self, message: memoryview) -> Row | None:
        """The values of one message; None when it has another shape."""
        if len(message) != self._size or int.from_bytes(message, "big") & self._mask != self._pattern:
            return None
        return self._struct.unpack(message)

    def rows(self, messages: memoryview) -> list[Row] | None:
        """The values of each message; None when one of them has another shape."""
        count, rest = divmod(len(messages), self._size)
        if rest:
            return None
        if count != self._repeated[0]:  # mostly as many as the last time
            mask, pattern = (_repeat(number, self._size, count) for number in (self._mask, self._pattern))
            self._repeated = (count, mask, pattern)
        _, mask, pattern = self._repeated
        if int.from_bytes(messages, "big") & mask != pattern:
            return None
        return list(self._struct.iter_unpack(messages))


def _repeat(number: int, size: int, count: int) -> int:
    """The bytes of a message `count` times over, as one number."""
    return int.from_bytes(number.to_bytes(size, "big") * count, "big")


def _places(
    message: bytes, at: int, end: int, tables: Mapping[str, Table], below: str, constant: bytearray
) -> Iterator[_Place]:
    """Each value's place, in order, and that of what holds others; the bytes of the attributes' headers are marked in
    `constant`."""
    while at < end:
        length, number = HEADER.unpack_from(message, at)
        if length < HEADER.size or at + length > end:
            raise struct.error(f"an attribute claims {length} of {end - at} bytes")
        constant[at : at + HEADER.size] = b"\xff" * HEADER.size
        attr, inside = tables[below].attribute(number), at + HEADER.size
        if attr is not None and attr.field in tables:
            yield inside, attr.field, ""
            yield from _places(message, inside, at + length, tables, attr.field, constant)
        elif attr is not None:
            if attr.kind.size not in (0, length - HEADER.size):
                raise struct.error(f"{attr.field} of {length - HEADER.size} bytes")
            yield inside, attr.field, attr.kind.layout or f"{length - HEADER.size}s"
        at += (length + 3) & ~3


def _format(places: list[_Place], size: int) -> str:
    """A struct format that reads these values and skips what lies between them."""
    parts, at = ["="], 0
    for offset, _, layout in places:
        parts.append(f"{offset - at}x{layout}")
        at = offset + struct.calcsize("=" + layout)
    return "".join(parts) + f"{size - at}x"
