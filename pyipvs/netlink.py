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
from collections.abc import Iterator
from typing import Protocol

from pyipvs import _libnl
from pyipvs.const import GENL_NAME, GENL_VERSION
from pyipvs.errors import DecodeError, IPVSError, KernelError, ModuleMissing, PermissionDenied

NLMSG_ERROR, NLMSG_DONE = 2, 3  # <linux/netlink.h>
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
_NLMSGHDR = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENLMSGHDR = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_REQUEST = struct.Struct("=IHHIIBBH")  # both
_ERRNO = struct.Struct("=i")  # begins the payload of both NLMSG_ERROR and NLMSG_DONE
_TIMEVAL = struct.Struct("@ll")

# A dump's messages are as long as the longest receive so far, at most 32 KiB (netlink_dump in af_netlink.c);
# a shorter buffer would truncate them, a longer one gains nothing (measured 2026-11).
_RECEIVE_SIZE = 32768
_SOCKET_BUFFER = 1 << 20  # cut down to net.core.[rw]mem_max by the kernel


class Transport(Protocol):
    """What the client needs of a socket: the seam where `pyipvs.testing.FakeKernel` stands in."""

    def exchange(self, command: int, attributes: bytes, dump: bool = False) -> list[bytes]:
        """Send one command; the attributes of each answer.

        Raises KernelError with the kernel's errno, or ETIMEDOUT, or what the socket failed with.
        """

    def close(self) -> None:
        """Give the socket up; again does nothing."""


class NetlinkTransport:
    """The real one. Not for use from several threads at once."""

    def __init__(self, netns: str | None = None, timeout_s: float = 3.0) -> None:
        """Open and connect, in network namespace `netns` (a name of `ip netns`, or a path) or our own.

        `timeout_s` limits the wait for the kernel. Raises LibraryMissing, ModuleMissing, PermissionDenied,
        IPVSError.
        """
        if timeout_s <= 0:
            raise ValueError(f"timeout_s {timeout_s} must be above 0")
        self._timeout_s = timeout_s
        self._sequence = 0
        self._buffer = memoryview(bytearray(_RECEIVE_SIZE))
        self._handle: int | None = None
        self._socket: socket.socket | None = None
        self._lib = _libnl.load()
        with _in_netns(self._lib, netns):
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

    def exchange(self, command: int, attributes: bytes, dump: bool = False) -> list[bytes]:
        """See Transport."""
        try:
            return self._exchange(command, attributes, dump)
        except KernelError as error:
            # also genetlink's answer when ip_vs was unloaded and loaded again: the family has a new number
            if error.errno != errno.ENOENT or not self._family_moved():
                raise
            return self._exchange(command, attributes, dump)

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

    def _family_moved(self) -> bool:
        before, self._family = self._family, self._resolve()
        return self._family != before

    def _exchange(self, command: int, attributes: bytes, dump: bool) -> list[bytes]:
        if self._handle is None or self._socket is None:
            raise ValueError("this IPVS handle is closed")
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else NLM_F_ACK)
        self._send(request(command, attributes, flags, self._family, self._sequence, self._port))
        return self._receive(self._socket, self._sequence)

    def _send(self, message: bytes) -> None:
        while True:
            try:
                self._lib.nl_sendto(self._handle, message, len(message))
                return
            except _libnl.NlError as error:
                if error.errno != errno.EINTR:  # libnl does not retry; nothing was sent
                    raise KernelError(error.errno or errno.EIO) from None

    def _receive(self, receiver: socket.socket, sequence: int) -> list[bytes]:
        answers: list[bytes] = []
        deadline_s = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline_s:
            for kind, payload in _answers(self._received(receiver), sequence):
                if kind == self._family:
                    answers.append(bytes(payload[_GENLMSGHDR.size :]))
                elif kind in (NLMSG_ERROR, NLMSG_DONE):
                    if code := -_ERRNO.unpack_from(payload)[0]:
                        raise KernelError(code)
                    return answers
        raise KernelError(errno.ETIMEDOUT)

    def _received(self, receiver: socket.socket) -> memoryview:
        """What one receive gave. Raises KernelError; ENOBUFS is the kernel's word for answers dropped."""
        try:
            size = receiver.recv_into(self._buffer, 0, socket.MSG_TRUNC)  # gives the length even of a cut one
        except BlockingIOError:
            # The one known case: DEL_DAEMON fails with EINTR, for which netlink_rcv_skb sends no answer.
            raise KernelError(errno.ETIMEDOUT) from None
        except OSError as error:
            raise KernelError(error.errno or errno.EIO) from None
        if size > _RECEIVE_SIZE:
            raise KernelError(errno.EMSGSIZE)
        return self._buffer[:size]


def request(command: int, attributes: bytes, flags: int, family: int, sequence: int, port: int) -> bytes:
    """A whole message, as libnl's genlmsg_put would begin it."""
    length = _REQUEST.size + len(attributes)
    return _REQUEST.pack(length, family, flags, sequence, port, command, GENL_VERSION, 0) + attributes


def _answers(data: memoryview, sequence: int) -> Iterator[tuple[int, memoryview]]:
    """(type, payload) of each message that answers request `sequence`. Raises DecodeError."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < _NLMSGHDR.size:
            raise DecodeError("a netlink message is cut off")
        length, kind, _flags, answered, _port = _NLMSGHDR.unpack_from(data, offset)
        if length < _NLMSGHDR.size + 4 or length > end - offset:
            raise DecodeError(f"a netlink message claims {length} of {end - offset} bytes")
        if answered == sequence:
            yield kind, data[offset + _NLMSGHDR.size : offset + length]
        offset += (length + 3) & ~3


@contextlib.contextmanager
def _in_netns(lib: _libnl.Library, netns: str | None) -> Iterator[None]:
    """The calling thread in network namespace `netns` within the block, and back whatever happens."""
    if netns is None:
        yield
        return
    path = netns if "/" in netns else f"/run/netns/{netns}"
    with contextlib.ExitStack() as stack:
        try:
            home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, home)
            there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, there)
            lib.setns(there, _libnl.CLONE_NEWNET)
        except OSError as error:
            raise _cannot_enter(path, error) from None
        stack.callback(lib.setns, home, _libnl.CLONE_NEWNET)  # runs before the descriptors are closed
        yield


def _cannot_enter(path: str, error: OSError) -> IPVSError:
    what = f"network namespace {path}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return PermissionDenied("enter", error.errno, what, hint="needs CAP_SYS_ADMIN besides CAP_NET_ADMIN")
    return IPVSError("enter", error.errno or errno.EIO, what)
