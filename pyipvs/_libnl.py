"""libnl-3, libnl-genl-3 and two calls of libc, as a table: the only file that knows ctypes.

Each function's row says its argument types, its result and how a failure shows; `None` there means "cannot
fail". The libraries are loaded at the first use, so that `import pyipvs` works anywhere. libnl owns the
socket, its connection, the resolving of the family (which makes the kernel load ip_vs) and the sending; the
bytes are ours (wire.py).
Does not: build or read messages.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint32, c_void_p
from typing import Any

from pyipvs.errors import LibraryMissing

CLONE_NEWNET = 0x40000000  # <sched.h>
_FLAGS = 0x10000 | int(socket.MSG_TRUNC)  # MSG_WAITFORONE, <sys/socket.h>; the length even of a cut datagram
NLE_NOMEM, NLE_OBJ_NOTFOUND = 5, 12  # <netlink/errno.h>


class NlError(Exception):
    """A libnl call failed. `code` is libnl's positive code, `errno` what the C library had set."""

    def __init__(self, function: str, code: int, errno: int) -> None:
        """Made by the checks below."""
        super().__init__(f"{function} failed (libnl {code}, errno {errno})")
        self.function, self.code, self.errno = function, code, errno


def _not_null(name: str, result: Any) -> Any:
    if not result:
        raise NlError(name, NLE_NOMEM, errno.ENOMEM)  # the only reason for which an allocator gives NULL
    return result


def _not_negative(name: str, result: int) -> int:
    if result < 0:
        raise NlError(name, -result, ctypes.get_errno())
    return result


def _os_error(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


Check = Callable[[str, Any], Any] | None
Row = tuple[tuple[Any, ...], Any, Check]

SIGNATURES: dict[str | None, dict[str, Row]] = {
    "libnl-3.so.200": {
        "nl_socket_alloc": ((), c_void_p, _not_null),
        "nl_socket_free": ((c_void_p,), None, None),
        "nl_socket_get_fd": ((c_void_p,), c_int, _not_negative),
        "nl_socket_get_local_port": ((c_void_p,), c_uint32, None),
        "nl_socket_set_buffer_size": ((c_void_p, c_int, c_int), c_int, _not_negative),
        "nl_socket_disable_msg_peek": ((c_void_p,), None, None),
        "nl_socket_set_msg_buf_size": ((c_void_p, c_size_t), c_int, _not_negative),
        "nl_sendto": ((c_void_p, c_void_p, c_size_t), c_int, _not_negative),
    },
    "libnl-genl-3.so.200": {
        "genl_connect": ((c_void_p,), c_int, _not_negative),
        "genl_ctrl_resolve": ((c_void_p, c_char_p), c_int, _not_negative),
    },
    None: {  # the C library
        "setns": ((c_int, c_int), c_int, _os_error),  # os.setns is new in Python 3.12
        "recvmmsg": ((c_int, c_void_p, c_uint, c_int, c_void_p), c_int, _os_error),  # Python has none
    },
}


class Library:
    """The loaded functions as attributes: `lib.nl_socket_alloc()`, each checked as its row says."""

    def __init__(self) -> None:
        """Loads the shared libraries. Raises LibraryMissing."""
        for soname, rows in SIGNATURES.items():
            try:
                library = ctypes.CDLL(soname, use_errno=True)
            except OSError as error:
                raise LibraryMissing("load", errno.ENOENT, soname or "the C library", str(error)) from None
            for name, row in rows.items():
                setattr(self, name, _bind(library, name, row))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"{name} is not in SIGNATURES")


def _bind(library: ctypes.CDLL, name: str, row: Row) -> Callable[..., Any]:
    function = getattr(library, name)
    arguments, result, check = row
    function.argtypes, function.restype = arguments, result
    if check is not None:
        function.errcheck = lambda value, _function, _arguments: check(name, value)
    bound: Callable[..., Any] = function
    return bound


class _IoVec(ctypes.Structure):
    """struct iovec, <sys/uio.h>."""

    _fields_ = (("base", c_void_p), ("size", c_size_t))


class _MsgHdr(ctypes.Structure):
    """struct msghdr, <sys/socket.h>."""

    _fields_ = (
        ("name", c_void_p),
        ("name_size", c_uint32),
        ("parts", c_void_p),
        ("part_count", c_size_t),
        ("control", c_void_p),
        ("control_size", c_size_t),
        ("flags", c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr, <sys/socket.h>."""

    _fields_ = (("header", _MsgHdr), ("length", c_uint))


class Receiver:
    """Receives several datagrams in one system call: a dump's answers and its end cost one instead of two."""

    def __init__(self, size: int, count: int) -> None:
        """`count` buffers of `size` bytes, used again and again."""
        self._size = size
        self._buffers = [memoryview(bytearray(size)) for _ in range(count)]
        self._parts = (_IoVec * count)()
        self._messages = (_Message * count)()
        for index, buffer in enumerate(self._buffers):
            self._parts[index].base = ctypes.addressof(pointer_to(buffer))
            self._parts[index].size = size
            self._messages[index].header.parts = ctypes.addressof(self._parts[index])
            self._messages[index].header.part_count = 1
        self._vector = ctypes.addressof(self._messages)

    def receive(self, receiver: socket.socket) -> list[memoryview]:
        """Wait for one datagram, or for as long as SO_RCVTIMEO says; it, and what there is besides.

        Good until the next call. Raises OSError, EMSGSIZE for a datagram longer than a buffer.
        """
        count = load().recvmmsg(receiver.fileno(), self._vector, len(self._buffers), _FLAGS, None)
        received = []
        for index in range(count):
            length = self._messages[index].length
            if length > self._size:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            received.append(self._buffers[index][:length])
        return received


def pointer_to(buffer: memoryview) -> Any:
    """The address of a writable buffer, as an argument."""
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)


_loaded: Library | None = None


def load() -> Library:
    """The library, loaded once. Raises LibraryMissing."""
    global _loaded  # one table of foreign functions for the process
    if _loaded is None:
        _loaded = Library()
    return _loaded
