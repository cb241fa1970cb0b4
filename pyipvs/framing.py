"""Netlink messages as bytes: headers, acknowledgements, and where each message of a buffer ends.

<linux/netlink.h> and <linux/genetlink.h>. Pure.
Does not: send, or know an attribute.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pyipvs.const import GENL_VERSION
from pyipvs.errors import DecodeError

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
TYPE_AT, FLAGS_AT, SEQUENCE_AT = 4, 6, 8  # within struct nlmsghdr
NLMSGHDR = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
REQUEST = struct.Struct("=IHHIIBBH")  # it and struct genlmsghdr: command, version, reserved
ANSWER_HEADER = REQUEST.size
_OUTCOME = struct.Struct("=IHHIIi")  # struct nlmsghdr and the errno of struct nlmsgerr
_ERRNO = struct.Struct("=i")  # begins the payload of both NLMSG_ERROR and NLMSG_DONE
_MAX_ERRNO = 4095  # <linux/err.h>


class Message(NamedTuple):
    """One message of a buffer, from `at` to `end`."""

    at: int
    end: int
    kind: int
    sequence: int


def request(command: int, attributes: bytes, flags: int, family: int, sequence: int, port: int) -> bytes:
    """A whole message, as libnl's genlmsg_put would begin it."""
    length = REQUEST.size + len(attributes)
    return REQUEST.pack(length, family, flags, sequence, port, command, GENL_VERSION, 0) + attributes


def messages(data: memoryview) -> Iterator[Message]:
    """The messages that stand in a buffer side by side. Raises DecodeError."""
    at, end = 0, len(data)
    while at < end:
        if end - at < NLMSGHDR.size:
            raise DecodeError("a netlink message is cut off")
        length, kind, _flags, sequence, _port = NLMSGHDR.unpack_from(data, at)
        if length < NLMSGHDR.size + _ERRNO.size or length > end - at:
            raise DecodeError(f"a netlink message claims {length} of {end - at} bytes")
        yield Message(at, at + length, kind, sequence)
        at += (length + 3) & ~3


def answers(data: memoryview, kind: int, sequence: int) -> tuple[int, int, Message | None]:
    """Of what one receive gave, the stretch of messages of type `kind` that answer request `sequence`, and the
    message that ends the answer, or None. Raises DecodeError."""
    begin = at = 0
    end, size, unpack = len(data), NLMSGHDR.size, NLMSGHDR.unpack_from
    while end - at >= size:
        length, found, _flags, answered, _port = unpack(data, at)
        if length < size + _ERRNO.size or length > end - at:
            break
        if answered != sequence:
            begin = at + ((length + 3) & ~3)  # a late answer to an earlier request
        elif found != kind:
            return begin, at, Message(at, at + length, found, answered)
        at += (length + 3) & ~3
    if at < end:
        raise DecodeError(f"a netlink message is cut off at byte {at} of {end}")
    return begin, end, None


def outcomes(data: memoryview, first: int, count: int, failed: dict[int, int]) -> bool:
    """Of the acknowledgements of `count` requests from sequence number `first` that stand in what one receive gave:
    note in `failed` the errno of each that was refused, by its index; whether the last one is among them. Raises
    DecodeError."""
    at, end, done = 0, len(data), False
    while at < end:
        if end - at < _OUTCOME.size:
            raise DecodeError("an acknowledgement is cut off")
        length, kind, _flags, sequence, _port, code = _OUTCOME.unpack_from(data, at)
        if length < _OUTCOME.size or length > end - at:
            raise DecodeError(f"a netlink message claims {length} of {end - at} bytes")
        if kind == NLMSG_ERROR and 0 <= sequence - first < count:
            if code:
                failed[sequence - first] = _refusal(code)
            done = done or sequence - first == count - 1
        at += (length + 3) & ~3
    return done


def errno_of(data: memoryview, message: Message) -> int:
    """The positive errno of an NLMSG_ERROR or NLMSG_DONE, 0 for success. Raises DecodeError."""
    return _refusal(_ERRNO.unpack_from(data, message.at + NLMSGHDR.size)[0])


def _refusal(code: int) -> int:
    """The errno that a kernel sends as a negative number; os.strerror refuses what is far from any."""
    if not -_MAX_ERRNO <= code <= 0:
        raise DecodeError(f"a netlink message with errno {-code}")
    return -code
