"""Network namespaces: the calling thread in another one for a while, and back whatever happens.

A socket, and an open file below /proc/net, stay with the namespace in which they were opened (setns(2)).
Does not: make or delete a namespace.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from pyipvs import _libnl
from pyipvs.errors import IPVSError, PermissionDenied


@contextlib.contextmanager
def in_netns(lib: _libnl.Library, netns: str | int | os.PathLike[str] | None) -> Iterator[None]:
    """The calling thread in network namespace `netns` within the block, and back whatever happens."""
    if netns is None:
        yield
        return
    name = f"/proc/self/fd/{netns}" if isinstance(netns, int) else os.fspath(netns)
    path = name if "/" in name else f"/run/netns/{name}"
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


@contextlib.contextmanager
def network_namespace(netns: str | int | os.PathLike[str] | None) -> Iterator[None]:
    """The calling thread in network namespace `netns` within the block, as of IPVS (None: it stays): for what reads files,
    as `connections` and `sysctls`. Raises IPVSError, PermissionDenied (needs CAP_SYS_ADMIN), LibraryMissing."""
    if netns is None:  # needs no library
        yield
        return
    with in_netns(_libnl.load(), netns):
        yield


def _cannot_enter(path: str, error: OSError) -> IPVSError:
    what = f"network namespace {path}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return PermissionDenied("enter", error.errno, what, hint="needs CAP_SYS_ADMIN besides CAP_NET_ADMIN")
    return IPVSError("enter", error.errno or errno.EIO, what)
