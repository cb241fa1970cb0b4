"""TLS and plain HTTP on one port, half handshakes, and certificates that change."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusisd.errors import StartupError
from fusisd.web.certificate import Certificate
from fusisd.web.connection import Limits
from fusisd.web.entry import Entry
from fusisd.web.server import UnixListener, WebServer
from tests.bench.attackers import client_hello, unverified
from tests.fusisd.test_web_attacks import BIG, attackers, big
from tests.fusisd.web_helpers import GET, PEM, Client, another, ask, hello, port_of, serving
from tests.lab.expect import poll

HELLO = client_hello()


def entry(pem: Path) -> Entry:
    return Entry(host_names=frozenset({"x"}), certificate=Certificate(pem, pem))


@contextmanager
def tls(server: WebServer, context: ssl.SSLContext | None = None) -> Iterator[Client]:
    sock = socket.create_connection(("127.0.0.1", port_of(server)), 10)
    with Client((context or unverified()).wrap_socket(sock)) as client:
        yield client


def scheme(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """An application that tells by what it is asked."""
    body = environ["wsgi.url_scheme"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def test_one_port_speaks_both(pem: Path) -> None:
    with serving(scheme, entry=entry(pem)) as server:
        with tls(server) as client:
            for _ in range(3):
                client.say(GET)
                assert client.answer().body == b"https"
        assert ask(server, GET).body == b"http"


def test_the_unix_socket_speaks_no_tls(pem: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with serving(scheme, UnixListener(path), entry=entry(pem)), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        with Client(sock) as client:
            client.say(HELLO)
            assert client.answer().status == 400


def test_without_a_certificate_a_handshake_is_a_bad_request() -> None:
    with serving(hello) as server, Client.of(server) as client:
        client.say(HELLO.replace(b"\n", b"x") + b"\n")
        assert client.answer().status == 400


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_large_bodies_pass_in_both_directions(pem: Path, version: ssl.TLSVersion) -> None:
    context = unverified()
    context.minimum_version = context.maximum_version = version
    with serving(big, entry=entry(pem)) as server, tls(server, context) as client:
        for _ in range(3):
            client.say(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.answer().body == BIG
        client.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"y" * 900_000)
        assert client.answer().body == b"y" * 900_000


def test_an_old_tls_is_refused(pem: Path) -> None:
    context = unverified()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(hello, entry=entry(pem)) as server, pytest.raises(ssl.SSLError), tls(server, context):
        pass


def test_the_end_of_an_answer_is_told_in_tls(pem: Path) -> None:
    with serving(hello, entry=entry(pem)) as server, tls(server) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        client.sock.suppress_ragged_eofs = False
        client.say(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.answer().status == 200
        assert client.ended()


def test_a_request_in_many_records_is_answered(pem: Path) -> None:
    with serving(hello, entry=entry(pem)) as server, tls(server) as client:
        for byte in b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde":
            client.say(bytes([byte]))
        assert client.answer().body == b"abcde"


@pytest.mark.parametrize("words", [b"", HELLO[:1], HELLO[:50], HELLO], ids=["silent", "a byte", "half a hello", "a hello"])
def test_100_clients_that_never_finish_their_handshake_hold_nobody_up(pem: Path, words: bytes) -> None:
    with serving(hello, entry=entry(pem)) as server, attackers(server, 100, words):
        for _ in range(5):
            with tls(server) as client:
                client.say(GET)
                assert client.answer().status == 200
            assert ask(server, GET).status == 200


@pytest.mark.parametrize("words", [b"", HELLO[:50], HELLO], ids=["silent", "half a hello", "a hello"])
def test_a_handshake_has_a_deadline_that_dripping_does_not_move(pem: Path, words: bytes) -> None:
    with serving(hello, entry=entry(pem), limits=Limits(handshake_s=0.3)) as server, Client.of(server) as client:
        client.say(words)
        client.sock.settimeout(0.05)
        rest = iter(HELLO[len(words) :])

        def drip() -> bool:
            if byte := next(rest, None):
                client.say(bytes([byte]))
            try:
                return client.sock.recv(65536) == b""
            except ConnectionError:
                return True

        poll(drip, what="closed")


def test_100_clients_that_drip_in_tls_or_do_not_read_hold_nobody_up(pem: Path) -> None:
    with serving(big, entry=entry(pem)) as server:
        clients = []
        for number in range(100):
            sock = socket.create_connection(("127.0.0.1", port_of(server)), 10)
            clients.append(unverified().wrap_socket(sock))
            clients[-1].sendall(b"GET / HT" if number % 2 else b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        for _ in range(10):
            with tls(server) as client:
                client.say(GET)
                assert client.answer().status == 200
        for one in clients:
            one.close()


def test_nonsense_after_the_handshake_s_first_byte_ends_the_connection_alone(
    pem: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), serving(hello, entry=entry(pem)) as server:
        with attackers(server, 20, b"\x16nonsense" * 100) as clients:
            for client in clients:
                with pytest.raises(ConnectionError):
                    client.answer()
        assert ask(server, GET).status == 200
    assert caplog.text == ""


# Certificates.


def shown(server: WebServer) -> bytes:
    """The certificate that a new client is shown."""
    with tls(server) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        return client.sock.getpeercert(binary_form=True) or b""


def test_a_changed_certificate_is_shown_to_new_clients_and_old_connections_go_on(pem: Path) -> None:
    letting = entry(pem)
    assert letting.certificate is not None
    with serving(hello, entry=letting) as server, tls(server) as client:
        before = shown(server)
        letting.certificate.refresh()
        assert shown(server) == before
        another(pem)
        letting.certificate.refresh()
        assert shown(server) != before
        client.say(GET)
        assert client.answer().status == 200


@pytest.mark.parametrize("content", [b"", b"half a file", PEM.read_bytes()[:200]])
def test_a_file_that_is_no_certificate_yet_changes_nothing_and_is_told_once(
    pem: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(pem, pem)
    context = certificate.context
    pem.write_bytes(content)
    certificate.refresh()
    certificate.refresh()
    assert certificate.context is context
    assert caplog.text.count("certificate not reloaded") == 1
    another(pem)
    certificate.refresh()
    assert certificate.context is not context


def test_a_key_of_another_certificate_is_named(pem: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    another(other)
    with pytest.raises(StartupError, match="they do not fit each other"):
        Certificate(pem, other)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.chmod(0o604), "chmod o="),
        (lambda path: path.write_text("nonsense"), "no PEM"),
    ],
)
def test_what_is_no_key_stops_the_start_and_says_why(pem: Path, make: Callable[[Path], Any], said: str) -> None:
    make(pem)
    with pytest.raises(StartupError, match=said):
        Certificate(pem, pem)


def test_a_key_with_a_password_does_not_ask_the_terminal(pem: Path) -> None:
    words = ["openssl", "ec", "-in", str(pem), "-aes128", "-passout", "pass:secret"]
    locked = subprocess.run(words, capture_output=True, check=True).stdout
    key = pem.with_name("locked.pem")
    key.write_bytes(locked)
    key.chmod(0o600)
    with pytest.raises(StartupError, match="has a password"):
        Certificate(pem, key)
