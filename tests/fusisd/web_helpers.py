"""What the tests of the web room share: a small real core, calls without a server, and a raw client."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusisd import state, target, why
from fusisd.commands import Command
from fusisd.counts import Counts
from fusisd.events import Ring
from fusisd.model import Destination, Intent, Service
from fusisd.ports import DestinationView, Foreseen, Reading, ServiceView, Snapshot
from fusisd.web.entry import Entry
from fusisd.web.server import Limits, Listener, TcpListener, WebServer

PEM = Path(__file__).with_name("web.test.pem")
TOKEN = "correct-horse-battery-staple"
JSON = "application/json; charset=utf-8"
X = Entry(host_names=frozenset({"x"}))
"""What the raw requests of these tests call us."""


class MemoryCore:
    """ports.Core over an intent in memory; `foreign` services stand in the kernel and are not ours."""

    def __init__(self, foreign: tuple[ServiceView, ...] = ()) -> None:
        self.intent = Intent()
        self.foreign = foreign
        self.seen: list[tuple[Command, str]] = []
        self.told: list[tuple[str, str]] = []
        self.reading, self.counted = Reading(0.0), Counts()
        self.events = Ring("7f")
        self.published = Snapshot(0, time.monotonic(), foreign, tell_status=lambda: {"ok": True}, tell_why=self._why)

    def snapshot(self) -> Snapshot:
        return self.published

    def submit(self, command: Command, who: str) -> Snapshot:
        after = state.apply(self.intent, command)
        if after is not self.intent:  # a commit
            self.intent = replace(after, revision=self.intent.revision + 1)
        self.seen.append((command, who))
        views = tuple(_view(service) for service in self.intent.services.values())
        self.published = Snapshot(
            self.published.generation + 1,
            time.monotonic(),
            (*views, *self.foreign),
            self.intent,
            lambda: {"ok": True},
            self._why,
        )
        return self.published

    def foresee(self, command: Command) -> Foreseen:
        return Foreseen(self.intent, state.apply(self.intent, command))

    def tell(self, kind: str, text: str, who: str) -> None:
        self.told.append((kind, who))

    def statistics(self) -> Reading:
        return self.reading

    def counts(self) -> Counts:
        return self.counted

    def _why(self, service: str, destination: str | None) -> Mapping[str, object] | None:
        world = target.World(self.intent, owned=frozenset(one.key for one in self.intent.services.values()))
        facts = why.Facts(world, target.build(world, 0.0), {}, "", 0.0)
        return why.of_service(facts, service) if destination is None else why.of_destination(facts, service, destination)


def _view(service: Service) -> ServiceView:
    destinations = tuple(_destination_view(destination) for destination in service.destinations.values())
    return ServiceView(service.name, service.key, service.scheduler, 0, False, True, "", destinations, service)


def _destination_view(d: Destination) -> DestinationView:
    where = (d.name, d.address, d.port, d.weight, d.method)
    return DestinationView(*where, "operator", "up", "", True, drain_left_s=d.drain_s, wanted=d.weight, destination=d)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    app: Any,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | list[Any] | None = None,
    peer: str = "unix",
    **environ: Any,
) -> Answer:
    """Call a WSGI application as the server does; a `body` that is no bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    full: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "fusisd",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(data)),
        "wsgi.input": io.BytesIO(data),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        "fusis.peer": peer,
        **environ,
    }
    if data and "CONTENT_TYPE" not in environ:
        full["CONTENT_TYPE"] = "application/json"
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        started[:] = [status, headers]

    result = b"".join(app(full, start_response))
    assert full["wsgi.errors"].getvalue() == ""
    return Answer(int(started[0][:3]), {name.title(): value for name, value in started[1]}, result)


SERVICE = {"Name": "web", "Host": "10.0.0.1", "Port": 80, "Protocol": "tcp", "Scheduler": "rr"}


@contextmanager
def serving(
    app: Any, *listeners: Listener, workers: int = 8, limits: Limits | None = None, entry: Entry = X
) -> Iterator[WebServer]:
    """A running server, by default on a free port of 127.0.0.1."""
    server = WebServer(app, listeners or (TcpListener("127.0.0.1", 0),), workers, limits=limits, entry=entry)
    server.start()
    try:
        yield server
    finally:
        server.stop(5.0)


def port_of(server: WebServer, index: int = 0) -> int:
    listener = server.addresses[index]
    assert isinstance(listener, TcpListener)
    return listener.port


@dataclass
class Client:
    """A TCP client that says exactly what it is told, and reads whole answers."""

    sock: socket.socket
    rest: bytearray = field(default_factory=bytearray)

    @classmethod
    def of(cls, server: WebServer, source: str = "127.0.0.1", timeout_s: float = 10.0) -> Client:
        return cls(socket.create_connection(("127.0.0.1", port_of(server)), timeout_s, (source, 0)))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, head_only: bool = False) -> Answer:
        """The next answer; ConnectionError when the server closed instead."""
        while b"\r\n\r\n" not in self.rest:
            self._more()
        head, _, rest = bytes(self.rest).partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.title(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.rest[:] = rest
        size = 0 if head_only else int(headers.get("Content-Length", "0"))
        while len(self.rest) < size:
            self._more()
        body = bytes(self.rest[:size])
        del self.rest[:size]
        return Answer(int(status_line.split()[1]), headers, body)

    def ended(self) -> bool:
        """The server closes without a further byte."""
        try:
            return not self.rest and self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        piece = self.sock.recv(65536)
        if not piece:
            raise ConnectionError(f"closed by the server; it had said {bytes(self.rest)!r}")
        self.rest += piece


def ask(server: WebServer, request: bytes) -> Answer:
    """One request on a connection of its own."""
    with Client.of(server) as client:
        client.say(request)
        return client.answer()


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """An application that tells who asks, and echoes the body."""
    body = environ["wsgi.input"].read() or f"hello {environ['fusis.peer']}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def another(pem: Path, address: str = "127.0.0.2") -> None:
    """Write another certificate over this one, which believes itself, for this address."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    aside = pem.with_suffix(".new")
    named = ["-subj", "/CN=another", "-addext", f"subjectAltName=IP:{address}"]
    done = subprocess.run([*made, *named, "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    aside.write_bytes(done.stdout)
    aside.chmod(0o600)
    aside.rename(pem)
