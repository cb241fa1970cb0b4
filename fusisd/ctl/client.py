"""Asking fusisd over its Unix socket or a URL, with a time limit.

Does not: print.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import ssl
import struct
import time
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

from fusisd.errors import FusisError

LIMIT_S = 5.0
CHANGE_LIMIT_S = 20.0  # longer than fusisd lets a change wait for the store and the wire
PATIENCE_S = 15.0
PORT = 8000
STRANGER = "what answers there is not fusisd, or one of another version"


class CtlError(FusisError):
    """The daemon did not answer, or refused; `str()` says what to do. `status` is the exit status (2: wrong usage)."""

    def __init__(self, message: str, status: int = 1) -> None:
        """See the class."""
        super().__init__(message)
        self.status = status


class Silent(CtlError):
    """Nobody answered."""


class Refusal(CtlError):
    """What the daemon refused; `field` is the place in what was sent that is to blame, None when it is not one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        """See the class."""
        super().__init__(message)
        self.field = field


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, limit_s: float) -> None:
        super().__init__("localhost", timeout=limit_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """One daemon."""

    def __init__(
        self,
        unix: Path,
        url: str | None = None,
        token: str | None = None,
        ca_file: Path | None = None,
        plaintext_token: bool = False,
    ) -> None:
        """`url` (http://HOST[:PORT], https://...) instead of the socket; `token` for changes through it; `ca_file` (PEM)
        has whom to believe that a certificate is the host's, None: this machine's authorities; `plaintext_token`: the
        token may be sent by http:// to another host, where it can be read on the way. Raises CtlError."""
        self._unix, self._where = unix, url or str(unix)
        self._peer = _Peer.of(url, ca_file) if url else None
        self._token, self._anyhow = token, plaintext_token

    def is_elsewhere(self) -> bool:
        """Whether the daemon behind the Unix socket has another network namespace than we; not known is no."""
        if self._peer is not None:
            return False
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(LIMIT_S)
                sock.connect(str(self._unix))
                pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            there, here = (os.stat(f"/proc/{who}/ns/net") for who in (pid, "self"))
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def get(self, path: str) -> Any:
        """The JSON that a GET answers. Raises CtlError."""
        return self.send("GET", path)

    def get_object(self, path: str, member: str) -> dict[str, Any]:
        """The object that a GET answers, which has this member when it is fusisd's. Raises CtlError."""
        answer = self.get(path)
        if not isinstance(answer, dict) or member not in answer:
            raise CtlError(STRANGER)
        return answer

    def get_patiently(self, path: str, member: str) -> dict[str, Any]:
        """As `get_object`, tried again for PATIENCE_S while nobody answers: fusisd may be starting anew. Raises CtlError."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.get_object(path, member)
            except Silent:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.2)

    def get_list(self, path: str) -> list[dict[str, Any]]:
        """The array that a GET answers. Raises CtlError."""
        answer = self.get(path)
        if not isinstance(answer, list):
            raise CtlError(STRANGER)
        return answer

    def send(self, method: str, path: str, document: object = None, limit_s: float | None = None) -> Any:
        """The JSON that a request answers, None when there is none (204). `document` is its body. Raises CtlError."""
        # Where it can be read on the way a token is not sent before it is asked for: reads seldom need it.
        at_first = method != "GET" or self._peer is None or not self._peer.is_open
        status, data = self._asked(method, path, document, limit_s, with_token=at_first)
        if status == 401 and not at_first and self._token:
            status, data = self._asked(method, path, document, limit_s, with_token=True)
        if status == 204:
            return None
        try:
            body = json.loads(data)
        except ValueError:
            raise CtlError(f"what answers at {self._where} is not fusisd") from None
        if status >= 400:
            raise _refusal(body)
        return body

    def _asked(
        self, method: str, path: str, document: object, limit_s: float | None, with_token: bool
    ) -> tuple[int, bytes]:
        limit_s = limit_s or (LIMIT_S if method == "GET" else CHANGE_LIMIT_S)
        connection = self._peer.connection(limit_s) if self._peer else _UnixConnection(self._unix, limit_s)
        body = None if document is None else json.dumps(document, separators=(",", ":")).encode("ascii")
        headers = {"Authorization": f"Bearer {self._secret()}"} if with_token and self._token else {}
        headers |= {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Silent(f"fusisd does not answer at {self._where}: {self._mended(error)}") from None
        finally:
            connection.close()

    def _secret(self) -> str | None:
        """The token, to be sent. Raises CtlError."""
        if self._peer is not None and self._peer.is_open and not self._anyhow:
            raise CtlError("by http:// to another host the token could be read on the way: use https://, or say"
                           " --plaintext-token", 2)  # fmt: skip
        return self._token

    def _mended(self, error: Exception) -> str:
        """What went wrong, with what helps."""
        if isinstance(error, PermissionError):
            return "you may not use it; run fusisctl as root"
        if verdict := getattr(error, "verify_message", None):  # ssl.SSLCertVerificationError
            return f"its certificate is not believed: {verdict}; --ca-file FILE names whom to believe"
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{why}; is it running there?" if self._peer else f"{why}; is it running? (systemctl status fusisd)"


class _Peer(NamedTuple):
    """A daemon on the network; with `tls` it must prove its name."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str, ca_file: Path | None) -> _Peer:
        """Raises CtlError."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port or PORT
        except ValueError:  # a port that is none, an address with half its brackets
            host, port = None, 0
        if host is None or parts.scheme not in ("http", "https") or parts.path not in ("", "/"):
            raise CtlError(f"--url {url!r} must be http://HOST[:PORT] or https://HOST[:PORT]", 2)
        return cls(host, port, _believing(ca_file) if parts.scheme == "https" else None)

    @property
    def is_open(self) -> bool:
        """Whether what is sent there can be read on the way."""
        try:
            near = self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            near = False
        return self.tls is None and not near

    def connection(self, limit_s: float) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        if self.tls is None:
            return http.client.HTTPConnection(self.host, self.port, limit_s)
        return http.client.HTTPSConnection(self.host, self.port, timeout=limit_s, context=self.tls)


def _believing(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one: a file without a certificate
        raise CtlError(f"--ca-file {ca_file}: {error.strerror or error}", 2) from None


def place(service: str, destination: str | None = None) -> str:
    """The path of a service, or of one of its destinations."""
    path = f"/v1/services/{urllib.parse.quote(service, safe='')}"
    return path if destination is None else f"{path}/destinations/{urllib.parse.quote(destination, safe='')}"


def _refusal(body: Any) -> Refusal:
    """A refusal with its sentence: problem details of /v1/, or the `error` of the other routes."""
    if not isinstance(body, dict):
        return Refusal(str(body))
    if "detail" not in body:
        return Refusal(str(body.get("error", body)))
    detail, field = str(body["detail"]), body.get("field")
    said = field is None or detail.startswith(str(field))
    return Refusal(detail if said else f"{field}: {detail}", field)
