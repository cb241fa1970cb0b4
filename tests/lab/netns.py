"""Entering network namespaces from one Python process (os.setns is new in Python 3.12)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def unshare_network() -> None:
    """Move this thread into a new, empty network namespace."""
    _call("unshare", CLONE_NEWNET)


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """This thread in the namespace of that name of `ip netns`, and back. Sockets made inside stay inside."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            _call("setns", there, CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _call("setns", home, CLONE_NEWNET)
    finally:
        os.close(home)
