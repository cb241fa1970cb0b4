"""Where we listen: TCP addresses and a Unix socket that is made without ever being open to strangers.

A live socket of another process is not stolen, a stale one is replaced, and only our own is removed (same
inode). Or systemd made them: then they outlive us, and who connects while we are away waits.
Does not: accept, or read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusisd.errors import StartupError

BACKLOG = 1024  # a full one drops SYNs, and a good client then waits a second (measured with 128)
DIRECTORY_MODE = 0o750
SOCKET_MODE = 0o660


@dataclass(frozen=True, slots=True)
class TcpListener:
    """Listen on this address; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixListener:
    """Listen on a Unix socket at this path."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Passed:
    """A socket that systemd made and listens on already."""

    name: str
    socket: socket.socket

    def __str__(self) -> str:
        return f"{self.name or 'a socket'} of systemd"


Listener = TcpListener | UnixListener | Passed


def chosen(
    listen: Sequence[tuple[str, int]], own: Iterable[str], port: int, unix: str, passed: Iterable[tuple[str, socket.socket]]
) -> list[Listener]:
    """Where to listen: on what was passed and on what `listen` says; on `port` of the `own` addresses when neither names
    TCP, and on the socket `unix` when no Unix socket was passed."""
    found: list[Listener] = [Passed(name, sock) for name, sock in passed]
    families = {listener.socket.family for listener in found if isinstance(listener, Passed)}
    tcp = [TcpListener(*where) for where in listen]
    if not tcp and not families & {socket.AF_INET, socket.AF_INET6}:
        tcp = [TcpListener(address, port) for address in own]
    return [*found, *tcp, *([] if socket.AF_UNIX in families else [UnixListener(unix)])]


class Bound:
    """A listening socket. `listener` has the real port; `close` removes a Unix socket that is still ours."""

    def __init__(self, listener: TcpListener | UnixListener, sock: socket.socket, made: bool = True) -> None:
        """`sock` is bound and becomes ours; `made` False: not its file."""
        self.listener, self.socket = listener, sock
        self._inode = _inode(listener.path) if made and isinstance(listener, UnixListener) else None

    def close(self) -> None:
        """Stop listening; the same again is fine."""
        self.socket.close()
        if isinstance(self.listener, UnixListener) and self._inode is not None:
            if _inode(self.listener.path) == self._inode:
                Path(self.listener.path).unlink(missing_ok=True)
            self._inode = None


def bind(listener: Listener) -> Bound:
    """Listen there. Raises StartupError, which says what to do."""
    if isinstance(listener, Passed):
        return _take(listener)
    return _bind_unix(listener) if isinstance(listener, UnixListener) else _bind_tcp(listener)


def _take(passed: Passed) -> Bound:
    """A socket that listens already; whoever has a connection waiting in it is served."""
    sock = passed.socket
    listening = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or not listening:
        raise StartupError(f"{passed} is no listening TCP or Unix socket: ListenStream= makes one, with Accept=no", 2)
    sock.setblocking(False)
    name = sock.getsockname()
    return Bound(UnixListener(str(name)) if sock.family == socket.AF_UNIX else TcpListener(*name[:2]), sock, made=False)


def _bind_tcp(listener: TcpListener) -> Bound:
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {listener}: {error.strerror}; choose another with --listen"
        ) from None
    try:
        # A restart must not wait for connections in TIME_WAIT. They inherit it; the kernel wants it on both sides.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # else IPv4 peers would show up as ::ffff:10.0.0.9
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listener.host, listener.port))
        _listen(sock)
    except (OSError, UnicodeError, OverflowError) as error:
        sock.close()
        raise _refusal(listener, error) from None
    return Bound(replace(listener, port=sock.getsockname()[1]), sock)


def _refusal(listener: TcpListener, error: OSError | UnicodeError | OverflowError) -> StartupError:
    where = f"port {listener.port} on {listener.host}"
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return StartupError(f"{where} is taken; choose another with --listen")
    if code == errno.EADDRNOTAVAIL:
        return StartupError(f"address {listener.host} is not on this machine; choose another with --listen")
    if code == errno.EACCES:
        return StartupError(f"{where} needs root or CAP_NET_BIND_SERVICE; choose another with --listen")
    if isinstance(error, socket.gaierror) or code is None:
        return StartupError(
            f"{listener} is not an address and port to listen on; choose another with --listen", status=2
        )
    return StartupError(f"cannot listen on {where}: {os.strerror(code)}; choose another with --listen")


def _bind_unix(listener: UnixListener) -> Bound:
    path = Path(listener.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_directory(path.parent)
        _remove_stale(path)
        # unix_bind() (net/unix/af_unix.c) gives the file the socket's own mode less the umask: never wider,
        # not even for a moment; afterwards what the umask took is given back.
        os.fchmod(sock.fileno(), SOCKET_MODE)
        sock.bind(listener.path)
        path.chmod(SOCKET_MODE)
        _listen(sock)
    except OSError as error:
        sock.close()
        raise StartupError(
            f"cannot listen on {path}: {error.strerror or error}; choose another socket path"
        ) from None
    except StartupError:
        sock.close()
        raise
    return Bound(listener, sock)


def _listen(sock: socket.socket) -> None:
    sock.listen(BACKLOG)
    sock.setblocking(False)


def _make_directory(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(DIRECTORY_MODE)
        directory.chmod(DIRECTORY_MODE)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"{path} is there and is not a socket; remove it or choose another socket path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its backlog is full: alive
    raise StartupError(f"another fusisd is running on {path}; stop it first")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)
