"""libnl-3, libnl-genl-3 and one call of libc, as a table: the only file that knows ctypes.

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
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_void_p
from typing import Any

from pyipvs.errors import LibraryMissing

CLONE_NEWNET = 0x40000000  # <sched.h>
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
