"""One generic netlink socket: a request out, its answers in, always within a time limit.

libnl opens, connects and resolves the family; a message is sent by nl_sendto and its answers are received on
the same socket here, because libnl folds errno values (ESRCH and ENOENT become one). Answers are matched by
sequence number, so what a request that timed out left behind is skipped. A change ends with its
acknowledgement (NLMSG_ERROR with 0), a dump with NLMSG_DONE.
Does not: know services and destinations.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

from pyipvs import _libnl
from pyipvs.const import GENL_NAME
from pyipvs.errors import DecodeError, IPVSError, KernelError, ModuleMissing
from pyipvs.framing import (
    ANSWER_HEADER,
    FLAGS_AT,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    SEQUENCE_AT,
    TYPE_AT,
    answers,
    errno_of,
    messages,
    outcomes,
    request,
)
from pyipvs.netns import in_netns

_TRUNC = int(socket.MSG_TRUNC)  # gives the length even of a cut datagram
_TIMEVAL = struct.Struct("=qq" if socket.SO_RCVTIMEO == 66 else "@ll")  # 66: SO_RCVTIMEO_NEW, of 32-bit machines
_U16, _U32 = struct.Struct("=H"), struct.Struct("=I")

# A dump's messages are as long as the longest receive so far, at most 32 KiB (netlink_dump in af_netlink.c);
# a shorter buffer would truncate them, a longer one gains nothing (63 receives for 5000, 2026-11).
_RECEIVE_SIZE = 32768
_AT_ONCE = 4  # buffers
_SOCKET_BUFFER = 1 << 20  # cut down to net.core.[rw]mem_max by the kernel


# Every refusal takes that much of the receive buffer, however short it is; what finds no room is dropped (measured
# 2026-11: 85 in 64 KiB, 2730 in 2 MiB). A batch may be refused whole, so it has no more messages than that.
_ROOM_PER_ERROR = 1024
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # <asm-generic/socket.h>; not in the socket module


class Transport(Protocol):
    """What the client needs of a socket: the seam where `pyipvs.testing.FakeKernel` stands in.

    Each method may raise KernelError with the kernel's errno, or ETIMEDOUT, or what the socket failed with.
    """

    @property
    def family(self) -> int:
        """The number of the family IPVS: the type of its messages."""

    @property
    def room(self) -> int:
        """How many messages `send` takes at once."""

    @property
    def longest(self) -> int:
        """How many bytes `send` takes at once."""

    def reserve(self, count: int) -> int:
        """The first of `count` sequence numbers that nobody else uses."""

    def exchange(self, command: int, attributes: bytes) -> list[bytes]:
        """Send one command; the attributes of its answers."""

    def dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
        """Ask for a list; its messages as they come, some at a time, good until the next are asked for."""

    def send(self, batch: memoryview, first: int, count: int) -> list[tuple[int, int]]:
        """Send `count` messages with the sequence numbers from `first`, the last with NLM_F_ACK.

        The index and errno of each that failed; those whose answer was lost have ENOBUFS, ETIMEDOUT or EBADMSG.
        """

    def close(self) -> None:
        """Give the socket up; again does nothing."""


class NetlinkTransport:
    """The real one. Not for use from several threads at once."""

    def __init__(self, netns: str | int | os.PathLike[str] | None = None, timeout_s: float = 3.0) -> None:
        """Open and connect, in network namespace `netns` (a name of `ip netns`, a path, an open file) or our own.

        `timeout_s` limits the wait for the kernel. Raises LibraryMissing, ModuleMissing, PermissionDenied,
        IPVSError.
        """
        if not 0 < timeout_s < 2**31:
            raise ValueError(f"timeout_s {timeout_s} must be above 0 and below 2^31")
        self._timeout_s = timeout_s
        self._sequence = 0
        self._buffer = memoryview(bytearray(_RECEIVE_SIZE))
        self._buffers = _libnl.Receiver(_RECEIVE_SIZE, _AT_ONCE)
        self._handle: int | None = None
        self._socket: socket.socket | None = None
        self._lib = _libnl.load()
        with in_netns(self._lib, netns):
            self._handle = self._lib.nl_socket_alloc()
            try:
                self._socket = self._connect()
                self._family = self._resolve()
            except BaseException:
                self.close()
                raise
        self._port = self._lib.nl_socket_get_local_port(self._handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)

    def close(self) -> None:
        """Close the socket; again does nothing."""
        handle, self._handle = self._handle, None
        if self._socket is not None:
            self._socket.close()
        if handle is not None:
            self._lib.nl_socket_free(handle)

    @property
    def family(self) -> int:
        """See Transport."""
        return self._family

    @property
    def room(self) -> int:
        """See Transport."""
        return self._room

    @property
    def longest(self) -> int:
        """See Transport."""
        return self._longest

    def reserve(self, count: int) -> int:
        """See Transport."""
        if self._sequence + count > 0xFFFFFFFF:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    def exchange(self, command: int, attributes: bytes) -> list[bytes]:
        """See Transport."""
        try:
            return self._exchange(command, attributes)
        except KernelError as error:
            # also genetlink's answer when ip_vs was unloaded and loaded again: the family has a new number
            if error.errno != errno.ENOENT or not self._family_moved():
                raise
            return self._exchange(command, attributes)

    def dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
        """See Transport."""
        parts = self._dump(command, attributes)
        try:
            first = next(parts, None)
        except KernelError as error:
            if not self._mended(error.errno):
                raise
            parts = self._dump(command, attributes)
            first = next(parts, None)
        if first is not None:
            yield first
            yield from parts

    def send(self, batch: memoryview, first: int, count: int) -> list[tuple[int, int]]:
        """See Transport."""
        failed = self._send_batch(batch, first, count)
        gone = [index for index, code in failed if code == errno.ENOENT]
        if not gone or not self._family_moved():
            return failed
        others = [(index, code) for index, code in failed if code != errno.ENOENT]
        again, start = self._readdressed(batch, gone)
        return others + [(gone[index], code) for index, code in self._send_batch(again, start, len(gone))]

    def _readdressed(self, batch: memoryview, wanted: list[int]) -> tuple[memoryview, int]:
        """These messages of a batch for the family's new number, with new sequence numbers; the first of those."""
        start = self.reserve(len(wanted))
        every = list(messages(batch))
        again = bytearray()
        for number, index in enumerate(wanted):
            at = len(again)
            again += batch[every[index].at : every[index].end]
            _U16.pack_into(again, at + TYPE_AT, self._family)
            _U16.pack_into(again, at + FLAGS_AT, NLM_F_REQUEST | (NLM_F_ACK if index == wanted[-1] else 0))
            _U32.pack_into(again, at + SEQUENCE_AT, start + number)
        return memoryview(again), start

    def _connect(self) -> socket.socket:
        """Connect the handle; a Python socket of its own descriptor to receive on."""
        lib, handle = self._lib, self._handle
        try:
            lib.genl_connect(handle)
            lib.nl_socket_set_buffer_size(handle, _SOCKET_BUFFER, _SOCKET_BUFFER)
            lib.nl_socket_set_msg_buf_size(handle, _RECEIVE_SIZE)
            lib.nl_socket_disable_msg_peek(handle)  # else libnl asks for each message's length first
            receiver = socket.socket(fileno=os.dup(lib.nl_socket_get_fd(handle)))
            receiver.setblocking(True)  # whatever socket.setdefaulttimeout says; SO_RCVTIMEO is the limit
        except _libnl.NlError as error:
            raise IPVSError("open", error.errno or errno.EIO, "netlink", str(error)) from None
        with contextlib.suppress(PermissionError):  # without CAP_NET_ADMIN nothing else works either
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _SOCKET_BUFFER)
            receiver.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_BUFFER)
        self._longest = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32  # netlink_sendmsg; else EMSGSIZE
        self._room = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // _ROOM_PER_ERROR
        timeval = divmod(max(1, int(self._timeout_s * 1e6)), 10**6)  # 0 would be "for ever"
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(*timeval))
        return receiver

    def _resolve(self) -> int:
        """The family's number; asking makes the kernel load ip_vs (alias net-pf-16-proto-16-family-IPVS)."""
        try:
            family: int = self._lib.genl_ctrl_resolve(self._handle, GENL_NAME.encode())
        except _libnl.NlError as error:
            if error.code == _libnl.NLE_OBJ_NOTFOUND:
                raise ModuleMissing("open", errno.ENOENT, "IPVS", "this kernel has none loaded") from None
            raise IPVSError("open", error.errno or errno.EIO, "IPVS", str(error)) from None
        return family

    def _mended(self, code: int) -> bool:
        """Whether a dump that was refused by this errno may be asked for again.

        EBUSY: a socket has one dump at a time (netlink_dump_start), and somebody left one before its end; receiving
        carries that on, so it is over when there is nothing left to receive.
        """
        if code == errno.EBUSY:
            self._drain(self._open())
            return True
        return code == errno.ENOENT and self._family_moved()

    def _family_moved(self) -> bool:
        """Whether ip_vs has another number by now; not when nobody says. Raises ModuleMissing."""
        before = self._family
        try:
            self._family = self._resolve()
        except ModuleMissing:
            raise
        except IPVSError:
            return False
        return self._family != before

    def _exchange(self, command: int, attributes: bytes) -> list[bytes]:
        receiver, sequence = self._open(), self.reserve(1)
        flags = NLM_F_REQUEST | NLM_F_ACK
        self._send(request(command, attributes, flags, self._family, sequence, self._port))
        found: list[bytes] = []
        since_s: float | None = None
        while True:
            for data in self._received(receiver, self._receive_one):
                for message in messages(data):
                    if message.sequence != sequence:
                        continue  # a late answer to an earlier request
                    if message.kind == self._family:
                        found.append(bytes(data[message.at + ANSWER_HEADER : message.end]))
                    elif code := errno_of(data, message):
                        raise KernelError(code)
                    else:
                        return found
            since_s = self._waiting(since_s)

    def _dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
        receiver, sequence = self._open(), self.reserve(1)
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._send(request(command, attributes, flags, self._family, sequence, self._port))
        since_s: float | None = None
        while True:
            for data in self._received(receiver, self._buffers.receive):
                begin, end, last = answers(data, self._family, sequence)
                if begin < end:
                    yield data[begin:end]
                    since_s = None  # the limit is for the kernel, not for our reader
                if last is not None:
                    if code := errno_of(data, last):
                        raise KernelError(code)
                    return
            since_s = self._waiting(since_s)

    def _send_batch(self, batch: memoryview, first: int, count: int) -> list[tuple[int, int]]:
        receiver = self._open()
        failed: dict[int, int] = {}
        since_s: float | None = None
        try:
            self._send(batch)
            while True:
                for data in self._received(receiver, self._receive_one):
                    if outcomes(data, first, count, failed):
                        return list(failed.items())
                since_s = self._waiting(since_s)
        except DecodeError:
            lost = errno.EBADMSG
        except KernelError as error:
            lost = error.errno
        self._drain(receiver)
        return [(index, failed.get(index, lost)) for index in range(count)]

    def _open(self) -> socket.socket:
        if self._handle is None or self._socket is None:
            raise ValueError("this IPVS handle is closed")
        return self._socket

    def _send(self, message: bytes | memoryview) -> None:
        data = message if isinstance(message, bytes) else _libnl.pointer_to(message)
        while True:
            try:
                self._lib.nl_sendto(self._handle, data, len(message))
                return
            except _libnl.NlError as error:
                if error.errno != errno.EINTR:  # libnl does not retry; nothing was sent
                    raise KernelError(error.errno or errno.EIO) from None

    def _waiting(self, since_s: float | None) -> float:
        """Called when a receive did not end an answer; since when that is so. Raises KernelError after the limit.

        Not called for most answers, which come whole, for where the clock is a system call it costs half of a
        send and its receive (user-mode Linux: 67 of 143 microseconds, measured 2026-11).
        """
        now_s = time.monotonic()
        if since_s is not None and now_s - since_s > self._timeout_s:
            raise KernelError(errno.ETIMEDOUT)
        return now_s if since_s is None else since_s

    def _drain(self, receiver: socket.socket) -> None:
        """Throw away what is left, for the kernel drops every answer until a full buffer was read empty."""
        with contextlib.suppress(OSError):
            while True:
                receiver.recv(1, socket.MSG_DONTWAIT)

    def _receive_one(self, receiver: socket.socket) -> list[memoryview]:
        """For answers that are one datagram. With its send it takes 1.7 microseconds, by Receiver 4.9, where
        a system call is cheap; in user-mode Linux they are alike (measured 2026-11)."""
        size = receiver.recv_into(self._buffer, 0, _TRUNC)
        if size > _RECEIVE_SIZE:
            raise KernelError(errno.EMSGSIZE)
        return [self._buffer[:size]]

    def _received(
        self, receiver: socket.socket, receive: Callable[[socket.socket], list[memoryview]]
    ) -> list[memoryview]:
        """What one receive gave. Raises KernelError; ENOBUFS is the kernel's word for answers dropped."""
        while True:
            try:
                return receive(receiver)
            except BlockingIOError:
                # The one known case: DEL_DAEMON fails with EINTR, for which netlink_rcv_skb sends no answer.
                raise KernelError(errno.ETIMEDOUT) from None
            except InterruptedError:
                continue  # a signal, whose handler Python has run meanwhile
            except OSError as error:
                raise KernelError(error.errno or errno.EIO) from None
