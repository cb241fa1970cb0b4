"""What can go wrong, by what the caller would do next; each keeps the kernel's errno and says what to do.

    IPVSError (an OSError)
      ServiceNotFound  DestinationNotFound                      look the object up, or make it first
      SchedulerNotFound  DaemonNotFound                         the same
      AlreadyExists                                             update instead
      PermissionDenied  ModuleMissing  LibraryMissing           mend the machine
      TimedOut                                                  read the table before trying again
    DecodeError (a ValueError)                                  bytes that are no IPVS message

libnl's own codes are never used: it folds ESRCH (no such service) and ENOENT (no such destination or
scheduler) into one. Wrong arguments are ValueError, raised before any system call.
Does not: catch anything; netlink.py and client.py turn an errno into one of these.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any


class IPVSError(OSError):
    """The kernel refused `operation` on `what`; `errno` is the kernel's and `hint` says what to do."""

    hint = ""

    def __init__(self, operation: str, errno: int, what: str = "", text: str = "", hint: str = "") -> None:
        """`text` replaces the system's words for `errno`, `hint` the class's own."""
        self.operation, self.what = operation, what
        self.hint = hint or self.hint
        name = _errno.errorcode.get(errno, str(errno))
        where = f"{operation} {what}".strip()
        message = f"{where}: {text or os.strerror(errno)} ({name})" + (f"; {self.hint}" if self.hint else "")
        super().__init__(errno, message)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled as it is: OSError would call `__init__` with its own two arguments."""
        return _remade, (type(self), self.args, self.__dict__)


def _remade(cls: type[IPVSError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> IPVSError:
    error = cls.__new__(cls)
    OSError.__init__(error, *arguments)
    error.__dict__.update(attributes)
    return error


class ServiceNotFound(IPVSError):
    """ESRCH: there is no such virtual service."""


class DestinationNotFound(IPVSError):
    """ENOENT on a destination command: the service has no such destination."""


class DaemonNotFound(IPVSError):
    """ESRCH on a daemon command: no synchronization daemon of that state runs."""


class SchedulerNotFound(IPVSError):
    """ENOENT on a service command: the kernel has no such scheduler or persistence engine."""

    hint = "the kernel looks for module ip_vs_NAME or ip_vs_pe_NAME"


class AlreadyExists(IPVSError):
    """EEXIST: a service or destination with that key is there already."""


class PermissionDenied(IPVSError):
    """EPERM: every IPVS command, reading too, needs CAP_NET_ADMIN (GENL_ADMIN_PERM in ip_vs_ctl.c); opening does not."""

    hint = "needs CAP_NET_ADMIN: run as root, or give the process that capability"


class ModuleMissing(IPVSError):
    """The kernel has no IPVS and could not load it."""

    hint = "try `modprobe ip_vs`; a kernel or container without the module cannot do IPVS"


class LibraryMissing(IPVSError):
    """libnl-3 or libnl-genl-3 could not be loaded."""

    hint = "on Debian or Ubuntu: apt-get install libnl-3-200 libnl-genl-3-200"


class TimedOut(IPVSError):
    """No answer within the time limit; the operation may or may not have been done."""

    hint = "read the table before trying again"


class DecodeError(ValueError):
    """Bytes that are not a well-formed IPVS message."""


class KernelError(Exception):
    """What a transport raises: an errno by which the kernel, or the socket, refused a request."""

    def __init__(self, errno: int) -> None:
        """`errno` is positive."""
        super().__init__(os.strerror(errno))
        self.errno = errno


_Row = tuple[type[IPVSError], str, str]  # its class, its text and its hint ("" = what the class has)
_BY_ERRNO: dict[int, _Row] = {
    _errno.ESRCH: (ServiceNotFound, "no such service", ""),
    _errno.EEXIST: (AlreadyExists, "exists already", ""),
    _errno.EPERM: (PermissionDenied, "", ""),
    _errno.EACCES: (PermissionDenied, "", ""),
    _errno.ETIMEDOUT: (TimedOut, "the kernel did not answer in time", ""),
    _errno.EBADMSG: (IPVSError, "the answer was garbled", "read the table before trying again"),
    _errno.ENOBUFS: (IPVSError, "answers were lost", "read the table before trying again"),
}
_BY_SUBJECT: dict[str, dict[int, _Row]] = {
    "service": {_errno.ENOENT: (SchedulerNotFound, "no such scheduler or persistence engine", "")},
    "destination": {
        _errno.ENOENT: (DestinationNotFound, "no such destination", ""),
        # ip_vs_new_dest asks the routing tables, which a network namespace has only when some address is up
        _errno.EINVAL: (IPVSError, "", "it must be the address of one host, and lo must be up in this namespace"),
    },
    "daemon": {
        _errno.ESRCH: (DaemonNotFound, "none runs", ""),
        # start_sync_thread in ip_vs_sync.c
        _errno.EINVAL: (IPVSError, "", "perhaps destinations of another family than their service are there"),
    },
    "table": {},
}


def error_for(operation: str, errno: int, what: str, subject: str) -> IPVSError:
    """The error for an errno. `subject`: the command was about a service, destination, daemon, or the whole table."""
    rows = _BY_ERRNO | _BY_SUBJECT[subject]
    kind, text, hint = rows.get(errno, (IPVSError, "", ""))
    return kind(operation, errno, what, text, hint)
