"""The server on real sockets: requests in every arrival pattern, listeners, keep-alive, stopping."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusisd.errors import StartupError
from fusisd.web.connection import Limits
from fusisd.web.server import TcpListener, UnixListener, WebServer
from tests.fusisd.web_helpers import GET, Client, X, ask, hello, port_of, serving
from tests.lab.expect import poll


def test_a_request_is_answered() -> None:
    with serving(hello) as server:
        answer = ask(server, GET)
    assert (answer.status, answer.body) == (200, b"hello 127.0.0.1")


def test_a_request_that_arrives_byte_by_byte_is_answered() -> None:
    with serving(hello) as server, Client.of(server) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde":
            client.say(bytes([byte]))
        assert client.answer().body == b"abcde"


def test_pipelined_requests_are_answered_in_order() -> None:
    bodies = [b"one", b"two", b"three", b"four", b"five"]
    with serving(hello) as server, Client.of(server) as client:
        client.say(
            b"".join(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(b), b) for b in bodies
            )
        )
        assert [client.answer().body for _ in bodies] == bodies


def test_a_client_that_has_sent_all_and_shut_down_its_half_is_answered() -> None:
    with serving(hello) as server, Client.of(server) as client:
        client.say(GET + GET)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.answer().status == client.answer().status == 200
        assert client.ended()


def test_empty_lines_before_a_request_are_ignored() -> None:
    with serving(hello) as server:
        assert ask(server, b"\r\n\r\n" + GET).status == 200


def test_a_connection_is_kept_for_further_requests_until_the_client_says_close_in_any_case() -> None:
    with serving(hello) as server, Client.of(server) as client:
        for _ in range(3):
            client.say(GET)
            assert "Connection" not in client.answer().headers
        client.say(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: CLOSE\r\n\r\n")
        assert client.answer().headers["Connection"] == "close"
        assert client.ended()


def test_an_http_1_0_client_is_answered_and_closed() -> None:
    with serving(hello) as server, Client.of(server) as client:
        client.say(b"GET / HTTP/1.0\r\n\r\n")
        assert client.answer().body == b"hello 127.0.0.1"
        assert client.ended()


def test_expect_100_continue_is_answered_exactly_once() -> None:
    with serving(hello) as server, Client.of(server) as client:
        client.say(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n")
        assert client.answer().status == 100
        client.say(b"ok")
        answer = client.answer()
        assert (answer.status, answer.body) == (200, b"ok")
        client.say(GET)
        assert client.answer().status == 200


def test_expect_with_its_body_already_there_gets_no_100() -> None:
    with serving(hello) as server:
        request = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok"
        assert ask(server, request).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 17000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400),
    ],
)
def test_a_request_that_cannot_be_understood_is_answered_with_json_and_closed(
    request_bytes: bytes, status: int
) -> None:
    with serving(hello) as server, Client.of(server) as client:
        client.say(request_bytes)
        answer = client.answer()
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        assert answer.headers["Connection"] == "close"
        assert list(answer.json) == ["error"]
        client.sock.shutdown(socket.SHUT_WR)
        assert client.ended()


def test_413_can_be_read_while_the_client_still_sends() -> None:
    with serving(hello) as server, Client.of(server) as client:
        client.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000)
        assert client.answer().status == 413


def test_a_second_request_cannot_hide_behind_a_disputed_length() -> None:
    smuggled = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    for fields in (b"Content-Length: 0\r\nContent-Length: 33\r\n", b"Content-Length: +33\r\n"):
        with serving(hello) as server, Client.of(server) as client:
            client.say(b"POST / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + smuggled)
            assert client.answer().status == 400
            client.sock.shutdown(socket.SHUT_WR)
            assert client.ended()


def test_no_header_can_forge_the_peer_or_the_body_length() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    with serving(app) as server:
        ask(
            server,
            b"POST / HTTP/1.1\r\nHost: x\r\nfusis.peer: unix\r\nfusis_peer: unix\r\nFusis-Peer: unix\r\n"
            b"Content_Length: 99\r\nContent-Length: 2\r\n\r\nok",
        )
        assert seen["SERVER_PORT"] == str(port_of(server))
    assert seen["fusis.peer"] == "127.0.0.1"
    assert seen["CONTENT_LENGTH"] == "2"


def test_a_failing_application_gives_500_json_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/bad":
            raise ZeroDivisionError("inside")
        return hello(environ, start_response)

    with serving(app) as server, caplog.at_level(logging.ERROR):
        answer = ask(server, b"GET /bad HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (answer.status, answer.json) == (500, {"error": "internal server error"})
        assert ask(server, GET).status == 200
    assert "ZeroDivisionError" in caplog.text


def test_head_has_no_body() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "1000")])
        return []

    with serving(app) as server, Client.of(server) as client:
        client.say(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        assert client.answer(head_only=True).headers["Content-Length"] == "1000"
        assert client.rest.startswith(b"HTTP/1.1 200") or not client.rest


def test_it_speaks_with_the_standard_library_s_client() -> None:
    with serving(hello) as server:
        connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=10)
        for body in (b"a", b"b" * 300_000):
            connection.request("POST", "/", body)
            assert connection.getresponse().read() == body
        connection.close()


# Listeners.


def test_one_server_listens_on_ipv4_ipv6_and_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "fusisd.sock")
    listeners = (TcpListener("127.0.0.1", 0), TcpListener("::1", 0), UnixListener(path))
    with serving(hello, *listeners) as server:
        assert ask(server, GET).body == b"hello 127.0.0.1"
        with Client(socket.create_connection(("::1", port_of(server, 1)), 10)) as client:
            client.say(GET)
            assert client.answer().body == b"hello ::1"
        with Client(unix(path)) as client:
            client.say(GET)
            assert client.answer().body == b"hello unix"


def unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(path)
    return sock


def test_the_unix_socket_and_its_directory_are_closed_to_strangers_under_any_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o077):
        path = tmp_path / f"run{umask}" / "fusisd.sock"
        before = os.umask(umask)
        try:
            with serving(hello, UnixListener(str(path))):
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
                assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
        finally:
            os.umask(before)
        assert not path.exists()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "fusisd.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with serving(hello, UnixListener(path)), Client(unix(path)) as client:
        client.say(GET)
        assert client.answer().status == 200


def test_a_live_unix_socket_is_not_stolen(tmp_path: Path) -> None:
    path = str(tmp_path / "fusisd.sock")
    with serving(hello, UnixListener(path)):
        with pytest.raises(StartupError, match=f"^another fusisd is running on {path}; stop it first$"):
            WebServer(hello, [UnixListener(path)]).start()
        with Client(unix(path)) as client:
            client.say(GET)
            assert client.answer().status == 200


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "fusisd.sock"
    path.write_text("precious")
    with pytest.raises(StartupError, match="is not a socket; remove it"):
        WebServer(hello, [UnixListener(str(path))]).start()
    assert path.read_text() == "precious"


def test_only_our_own_unix_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "fusisd.sock"
    with serving(hello, UnixListener(str(path))):
        path.unlink()
        path.write_text("of somebody else")
    assert path.read_text() == "of somebody else"


def test_a_taken_port_is_named_and_nothing_is_left_listening(tmp_path: Path) -> None:
    path = tmp_path / "fusisd.sock"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = WebServer(hello, [UnixListener(str(path)), TcpListener("127.0.0.1", port)])
        message = f"^port {port} on 127.0.0.1 is taken; choose another with --listen$"
        with pytest.raises(StartupError, match=message):
            server.start()
    assert not path.exists()
    assert server.addresses == ()


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(StartupError, match=r"^address 192\.0\.2\.1 is not on this machine; choose another"):
        WebServer(hello, [TcpListener("192.0.2.1", 0)]).start()


@pytest.mark.parametrize(
    "listener", [TcpListener("no such name.invalid", 80), TcpListener("127.0.0.1", 99999)]
)
def test_nonsense_to_listen_on_is_the_configuration_s_fault(listener: TcpListener) -> None:
    with pytest.raises(StartupError, match="is not an address and port to listen on") as caught:
        WebServer(hello, [listener]).start()
    assert caught.value.status == 2


def test_a_unix_path_that_is_too_long_is_a_start_up_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="AF_UNIX path too long; choose another socket path"):
        WebServer(hello, [UnixListener(str(tmp_path / ("x" * 120)))]).start()


def test_a_connection_that_comes_in_on_a_vip_is_closed() -> None:
    asked: list[str] = []

    def refuse(address: str) -> bool:
        asked.append(address)
        return address == "127.0.0.9"

    with serving(hello, TcpListener("0.0.0.0", 0), entry=replace(X, refuse_address=refuse)) as server:
        with Client(socket.create_connection(("127.0.0.9", port_of(server)), 10)) as client:
            assert client.ended()
        assert ask(server, GET).status == 200
    assert asked == ["127.0.0.9", "127.0.0.1"]


# Stopping.


def web_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("fusisd-web")}


def test_its_threads_are_named_daemons_and_none_is_left_after_stop() -> None:
    with serving(hello, workers=4):
        assert web_threads() == {
            "fusisd-web",
            "fusisd-web-read-0",
            "fusisd-web-read-1",
            "fusisd-web-change-0",
            "fusisd-web-change-1",
        }
        assert all(thread.daemon for thread in threading.enumerate() if thread.name in web_threads())
    assert web_threads() == set()


def test_stop_frees_the_port_and_every_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    server = WebServer(hello, [TcpListener("127.0.0.1", 0)])
    server.start()
    assert server.running
    port = port_of(server)
    with Client.of(server) as client:
        client.say(GET)
        client.answer()
        server.stop(5.0)
        server.stop(5.0)
        assert client.ended()
    assert not server.running
    assert len(os.listdir("/proc/self/fd")) == before
    again = WebServer(hello, [TcpListener("127.0.0.1", port)])
    again.start()
    again.stop(5.0)


def test_stop_with_many_silent_clients_is_quick() -> None:
    with serving(hello) as server:
        clients = [Client.of(server) for _ in range(50)]
        began = time.monotonic()
        server.stop(5.0)
        assert time.monotonic() - began < 2.0
        for client in clients:
            assert client.ended()
            client.sock.close()


@pytest.mark.parametrize("said_before", [b"", GET[:9]])
def test_who_was_accepted_just_before_the_end_is_answered(monkeypatch: pytest.MonkeyPatch, said_before: bytes) -> None:
    monkeypatch.setattr("fusisd.web.loop.LAST_WORD_S", 20.0)
    with serving(hello) as server, Client.of(server) as client, Client.of(server) as old:
        old.say(GET)
        assert old.answer().status == 200
        client.say(said_before)
        stopping = threading.Thread(target=server.stop, args=(20.0,))
        stopping.start()
        assert old.ended(), "who only keeps a connection is not waited for"
        client.say(GET[len(said_before) :])
        assert client.answer().status == 200
        stopping.join(20)
        assert not stopping.is_alive()


def test_a_request_in_hand_is_answered_before_stop_returns() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        entered.set()
        go_on.wait(10)
        return hello(environ, start_response)

    with serving(app) as server, Client.of(server) as client:
        client.say(GET)
        assert entered.wait(10)
        stopper = threading.Thread(target=server.stop, args=(10.0,))
        stopper.start()
        go_on.set()
        assert client.answer().status == 200
        assert client.ended()
        stopper.join(10)
        assert not stopper.is_alive()


def test_stop_does_not_wait_longer_than_told_for_a_handler_that_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        entered.set()
        go_on.wait(30)
        return hello(environ, start_response)

    with serving(app) as server, Client.of(server) as client:
        client.say(GET)
        assert entered.wait(10)
        began = time.monotonic()
        server.stop(0.3)
        assert time.monotonic() - began < 3.0
        assert client.ended()
        assert "web request still runs" in caplog.text
        go_on.set()
        poll(lambda: not web_threads(), what="the worker ends when its handler does")


def test_systemd_s_variables_do_not_make_it_take_a_foreign_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    with serving(hello) as server:
        assert ask(server, GET).status == 200


def test_the_cap_on_connections_stays_below_the_descriptors_of_the_process() -> None:
    from fusisd.web import server as module

    capped = module._within_descriptors(Limits(connections=10**9))
    assert capped.connections < 10**9


def test_who_asks_for_much_holds_up_no_other() -> None:
    """Sixty large reads by one peer wait; one small one by another goes before them."""
    gate, served = threading.Semaphore(0), list[str]()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        gate.acquire()
        served.append(environ["PATH_INFO"])
        return hello(environ, start_response)

    with serving(app) as server:
        many = [Client.of(server, "127.0.0.2") for _ in range(60)]
        for client in many:
            client.say(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        poll(lambda: server.waiting >= 56, what="all but those that the workers have to wait")
        with Client.of(server, "127.0.0.3") as other:
            other.say(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
            poll(lambda: server.waiting >= 57, what="it to wait, too")
            gate.release(61)
            assert other.answer().status == 200
        for client in many:
            assert client.answer().status == 200
            client.sock.close()
    assert served.index("/small") < 10
