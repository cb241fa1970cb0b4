"""Waiting for things to become true, and asking over HTTP: always with a limit, never by a fixed sleep."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

from tests.lab.netns import entered

T = TypeVar("T")


def poll(attempt: Callable[[], T], timeout_s: float = 20.0, what: str = "") -> T:
    """The first true result of `attempt`, tried every 20 ms; AssertionError with the last result or error after that."""
    deadline_s = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            result = attempt()
        except (OSError, AssertionError, LookupError) as error:
            last = error
        else:
            if result:
                return result
            last = result
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s} s: {what or attempt}; last: {last!r}")
        time.sleep(0.02)


def ask(address: str, port: int, netns: str | None = None, timeout_s: float = 3.0, path: str = "/") -> str:
    """The body that an HTTP server answers to a GET on a new connection. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if netns is None:
        sock = socket.socket(family)
    else:
        with entered(netns):
            sock = socket.socket(family)
    with sock:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
    if b"\r\n\r\n" not in data:
        raise ConnectionError("the answer was cut off")
    return data.split(b"\r\n\r\n", 1)[1].decode()
