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

LIMIT_S = 10.0  # longer than fusisd lets a change wait
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
        return self.ask("GET", path)

    def ask(self, method: str, path: str, document: object = None) -> Any:
        """The JSON that such a request answers; `document` is its body, None for none. Raises CtlError."""
        connection = http.client.HTTPConnection(*self._peer, LIMIT_S) if self._peer else _UnixConnection(self._unix)
        data = None if document is None else json.dumps(document)
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise CtlError(f"fusisd does not answer at {self._where}: {self._mended(error)}") from None
        finally:
            connection.close()
        try:
            body = json.loads(text)
        except ValueError:
            raise CtlError(f"what answers at {self._where} is not fusisd") from None
        if answer.status >= 400:
            raise CtlError(_reason(body))
        return body

    def _mended(self, error: Exception) -> str:
        """What went wrong, with what helps."""
        if isinstance(error, PermissionError):
            return "you may not use it; run fusisctl as root"
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{why}; is it running there?" if self._peer else f"{why}; is it running? (systemctl status fusisd)"


def _reason(body: object) -> str:
    """What a refusal says: a problem document's detail, or the error of the dialect of 2016."""
    if isinstance(body, dict):
        return str(body.get("detail") or body.get("error") or body)
    return str(body)


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or PORT
    except ValueError:  # a port that is none, an address with half its brackets
        host, port = None, 0
    if host is None or parts.scheme != "http" or parts.path not in ("", "/"):
        raise CtlError(f"--url {url!r} must be http://HOST[:PORT]", 2)
    return host, port
