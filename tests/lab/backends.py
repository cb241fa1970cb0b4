"""Backends for the lab's real servers: a forked child each (no interpreter to start), killable like any process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

from tests.lab.netns import entered
from tests.lab.topology import Host


class Backend:
    """A tiny HTTP server in a host's namespace; its answers are the host's name. Serves one request at a time."""

    def __init__(self, host: Host, port: int = 80, family: int = socket.AF_INET) -> None:
        self._host, self._port, self._family = host, port, family
        self._pid = 0

    def start(self) -> None:
        """Listen before this returns."""
        with entered(self._host.name):
            listener = socket.socket(self._family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if self._family == socket.AF_INET6 else "0.0.0.0", self._port))
        listener.listen(512)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _serve(listener, self._host.name.encode())
            finally:
                os._exit(1)
        listener.close()

    def kill(self) -> None:
        """End it without warning."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = 0

    def stop(self) -> None:
        """End it if it runs."""
        if self._pid:
            self.kill()


@contextlib.contextmanager
def backends(hosts: list[Host], port: int = 80, family: int = socket.AF_INET) -> Iterator[dict[str, Backend]]:
    """A running backend on each host, by name."""
    running = {host.name: Backend(host, port, family) for host in hosts}
    try:
        for backend in running.values():
            backend.start()
        yield running
    finally:
        for backend in running.values():
            backend.stop()


def _serve(listener: socket.socket, name: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(name), name)
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5.0)  # the client gives up first, however busy the machine: what it loses, it says
            data = b""
            while b"\r\n\r\n" not in data:
                piece = connection.recv(65536)
                if not piece:
                    break
                data += piece
            else:
                connection.sendall(answer)
