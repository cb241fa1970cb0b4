"""Where each value stands in a message of one shape, learnt from an example, to read the many like it at once.

A kernel sends every destination with the same attributes in the same order, so that the messages of a dump differ
in their values alone. `Layout` remembers one message: the places of the values as one struct.Struct, and all that
must not differ (its length, lengths and types of its attributes) as a mask and a pattern, which are compared for many
messages in one step. What does not fit is left to wire.unpack, which walks any message and is the reference.

`Packed` keeps of each message only the stretches of bytes that hold the wanted values, and makes a row when somebody
looks at it. A first read of 10,000 weights then touches 99 to 135 new pages instead of 585 (measured 2026-11), which is
most of its time where a page is dear: 60 to 100 microseconds each in user-mode Linux.
Does not: receive anything, or make objects.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import chain
from typing import Any, overload

from pyipvs.framing import ANSWER_HEADER
from pyipvs.wire import HEADER, Table

Row = tuple[Any, ...]
_Place = tuple[int, str, str]  # offset, field, struct format
_NEAR = 8  # bytes between two values that are kept in one stretch: a header, with the padding before it
# Messages compared in one step. For the numbers of 35 KB of a whole receive the C library's heap grew and shrank again and
# again: a read of 10,000 destinations beside two tables touched 1165 new pages, with 16 messages 364 and less (2026-11).
_AT_ONCE = 16


class Layout:
    """One shape of message; `fields` names the values of its rows in the order in which they stand."""

    def __init__(self, message: bytes, tables: Mapping[str, Table], wanted: Collection[str]) -> None:
        """Learn from `message`, headers included. `tables`: "" is that of the first level, the others those below
        the attribute that they are named by. `wanted`: the fields to read. Raises struct.error for no message, and
        for one of which the walk would make something else: a value of a wrong size, an attribute that comes twice."""
        if len(message) % 4:  # what follows it would not begin where it ends
            raise struct.error(f"a message of {len(message)} bytes")
        constant = bytearray(len(message))
        constant[:4] = b"\xff" * 4  # the message's length; its type is the family's number, which a reload of ip_vs changes
        places = list(_places(message, ANSWER_HEADER, len(message), tables, "", constant))
        if len({field for _, field, _ in places}) < len(places):
            raise struct.error("an attribute comes twice")
        read = [place for place in places if place[1] in wanted]
        self.fields = tuple(field for _, field, _ in read)
        self._size = len(message)
        self._struct = struct.Struct(_format(read, len(message)))
        stretches, moved = _stretches(read)
        self._stretches = struct.Struct(_format(stretches, len(message)))
        self._packed = struct.Struct(_format(moved, sum(map(len, self._stretches.unpack(message)))))
        self._mask = int.from_bytes(constant, "big")
        self._pattern = int.from_bytes(message, "big") & self._mask
        self._repeated: dict[int, tuple[int, int]] = {}  # mask and pattern of so many messages

    def row(self, message: memoryview) -> Row | None:
        """The values of one message; None when it has another shape."""
        if len(message) != self._size or int.from_bytes(message, "big") & self._mask != self._pattern:
            return None
        return self._struct.unpack(message)

    def rows(self, messages: memoryview) -> list[Row] | None:
        """The values of each message; None when one of them has another shape."""
        return list(self._struct.iter_unpack(messages)) if self._fits(messages) else None

    def packed(self, messages: memoryview) -> Packed | None:
        """The same, each made when it is looked at."""
        if not self._fits(messages):
            return None
        kept = BytesIO()  # bytes.join would first make a list of all stretches: new pages for each receive
        kept.writelines(chain.from_iterable(self._stretches.iter_unpack(messages)))
        return Packed(self._packed, kept.getvalue())

    def _fits(self, messages: memoryview) -> bool:
        """Whether each has this shape."""
        for at in range(0, len(messages), self._size * _AT_ONCE):
            part = messages[at : at + self._size * _AT_ONCE]
            count, rest = divmod(len(part), self._size)
            if count not in self._repeated:
                self._repeated[count] = _repeat(self._mask, self._size, count), _repeat(self._pattern, self._size, count)
            mask, pattern = self._repeated[count]
            if rest or int.from_bytes(part, "big") & mask != pattern:
                return False
        return True


class Packed(Sequence[Row]):
    """Rows as bytes, side by side, and the struct.Struct that reads one."""

    __slots__ = ("data", "row")

    def __init__(self, row: struct.Struct, data: bytes) -> None:
        """Made by Layout."""
        self.row, self.data = row, data

    def __len__(self) -> int:
        return len(self.data) // self.row.size

    def __iter__(self) -> Iterator[Row]:
        return self.row.iter_unpack(self.data)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return list(self)[index]
        return self.row.unpack_from(self.data, range(len(self))[index] * self.row.size)


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


def _stretches(places: list[_Place]) -> tuple[list[_Place], list[_Place]]:
    """The stretches of a message that hold these values, and each value's place when the stretches stand side by side."""
    ends: list[tuple[int, int]] = []
    moved: list[_Place] = []
    size = 0
    for at, field, layout in places:
        end = at + struct.calcsize("=" + layout)
        if ends and at - ends[-1][1] <= _NEAR:
            begin, before = ends.pop()
        else:
            begin = before = at
        ends.append((begin, end))
        size += end - before
        moved.append((size - (end - at), field, layout))
    return [(begin, "", f"{end - begin}s") for begin, end in ends], moved


def _format(places: list[_Place], size: int) -> str:
    """A struct format that reads these values and skips what lies between them."""
    parts, at = ["="], 0
    for offset, _, layout in places:
        parts.append(f"{offset - at}x{layout}")
        at = offset + struct.calcsize("=" + layout)
    return "".join(parts) + f"{size - at}x"
