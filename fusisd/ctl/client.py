"""Asking fusisd over its Unix socket or a URL, with a time limit.

Does not: print.
"""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from pathlib import Path
from typing import Any

from fusisd.errors import FusisError

LIMIT_S = 5.0
PORT = 8000


class CtlError(FusisError):
    """The daemon did not answer, or refused; `str()` says what to do. `status` is the exit status (2: wrong usage)."""

    def __init__(self, message: str, status: int = 1) -> None:
        """See the class."""
        super().__init__(message)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(str(self._path))


class Client:
    """One daemon."""

    def __init__(self, unix: Path, url: str | None = None, token: str | None = None) -> None:
        """`url` (http://HOST[:PORT]) instead of the socket; `token` for changes through it. Raises CtlError."""
        self._unix, self._where = unix, url or str(unix)
        self._peer = _host_and_port(url) if url else None
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str) -> Any:
        """The JSON that a GET answers. Raises CtlError."""
        connection = http.client.HTTPConnection(*self._peer, LIMIT_S) if self._peer else _UnixConnection(self._unix)
        try:
            connection.request("GET", path, headers=self._headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise CtlError(f"fusisd does not answer at {self._where}: {self._mended(error)}") from None
        finally:
            connection.close()
        try:
            body = json.loads(data)
        except ValueError:
            raise CtlError(f"what answers at {self._where} is not fusisd") from None
        if answer.status >= 400:
            raise CtlError(str(body.get("error", body)) if isinstance(body, dict) else str(body))
        return body

    def _mended(self, error: Exception) -> str:
        """What went wrong, with what helps."""
        if isinstance(error, PermissionError):
            return "you may not use it; run fusisctl as root"
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{why}; is it running there?" if self._peer else f"{why}; is it running? (systemctl status fusisd)"


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or PORT
    except ValueError:  # a port that is none, an address with half its brackets
        host, port = None, 0
    if host is None or parts.scheme != "http" or parts.path not in ("", "/"):
        raise CtlError(f"--url {url!r} must be http://HOST[:PORT]", 2)
    return host, port
