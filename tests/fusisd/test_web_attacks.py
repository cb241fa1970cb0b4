"""Clients that mean harm or are only slow: each test keeps a good client answered beside them."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fusisd.web.connection import Limits, Outbox
from fusisd.web.entry import Entry
from fusisd.web.server import WebServer
from tests.fusisd.web_helpers import GET, Client, ask, hello, port_of, serving
from tests.lab.expect import poll

BIG = b"x" * 1_000_000
HUGE = b"x" * 8_000_000  # more than the sockets of one connection take


def big(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """An application whose answer does not fit into a socket's buffers."""
    if environ["PATH_INFO"] != "/big":
        return hello(environ, start_response)
    start_response("200 OK", [("Content-Length", str(len(BIG)))])
    return [BIG]


@contextmanager
def attackers(server: WebServer, count: int, first_words: bytes = b"") -> Iterator[list[Client]]:
    """`count` clients that have connected and said this."""
    clients = []
    try:
        for _ in range(count):
            clients.append(Client.of(server))
            clients[-1].say(first_words)
        yield clients
    finally:
        for client in clients:
            client.sock.close()


def is_well(server: WebServer) -> None:
    """A good client is answered on ten new connections, each sooner than a hostile one could hold it up."""
    for _ in range(10):
        began = time.monotonic()
        assert ask(server, GET).status == 200
        assert time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    "first_words",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf of it",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
        b"\r\n",
    ],
    ids=["silent", "half a line", "half a head", "half a body", "waits for 100", "empty line"],
)
def test_100_clients_that_never_finish_their_request_hold_nobody_up(first_words: bytes) -> None:
    with serving(hello) as server, attackers(server, 100, first_words):
        is_well(server)


def test_100_dripping_clients_hold_nobody_up() -> None:
    with serving(hello) as server, attackers(server, 100) as clients:
        for byte in b"GET / HTTP/1.1\r\nX: ":
            for client in clients:
                client.say(bytes([byte]))
            assert ask(server, GET).status == 200


def test_a_silent_client_is_closed_without_a_word() -> None:
    with serving(hello, limits=Limits(request_s=0.3)) as server, Client.of(server) as client:
        assert client.ended()


def test_an_idle_client_is_closed_without_a_word_after_its_answers() -> None:
    with serving(hello, limits=Limits(idle_s=0.3)) as server, Client.of(server) as client:
        client.say(GET)
        assert client.answer().status == 200
        assert client.ended()


def test_dripping_does_not_move_the_deadline_of_a_request() -> None:
    with serving(hello, limits=Limits(request_s=0.5)) as server, Client.of(server) as client:
        client.say(b"GET / HTTP/1.1\r\nX: ")
        client.sock.settimeout(0.05)

        def drip() -> bytes:
            client.say(b"a")
            return client.sock.recv(65536)

        began = time.monotonic()
        assert poll(drip).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert time.monotonic() - began < 5.0


def test_slow_readers_hold_nobody_up() -> None:
    request = b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(big) as server, attackers(server, 50, request * 20):
        is_well(server)


def test_slow_readers_share_one_body_in_memory() -> None:
    boxes = [Outbox() for _ in range(3)]
    for box in boxes:
        box.write(BIG)
    assert all(box.pieces[0].obj is BIG for box in boxes)


def test_a_client_that_does_not_read_its_answer_is_reset() -> None:
    with serving(big, limits=Limits(write_s=0.3)) as server, Client.of(server) as client:
        client.say(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 20)

        def is_reset() -> bool:
            return client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

        assert poll(is_reset)
        is_well(server)


def test_clients_that_do_not_read_their_answers_do_not_hold_up_stop() -> None:
    with serving(big) as server, attackers(server, 50, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 20):
        is_well(server)
        began = time.monotonic()
        server.stop(30.0)
        assert time.monotonic() - began < 5.0


def test_a_slow_reader_that_reads_on_gets_every_byte() -> None:
    with serving(big) as server, Client.of(server) as client:
        client.say(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        for _ in range(3):
            assert client.answer().body == BIG


def test_over_the_cap_the_oldest_make_room_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), serving(hello, limits=Limits(connections=20)) as server:
        with attackers(server, 60, b"GET / HT") as clients:
            is_well(server)
            assert all(client.ended() for client in clients[:40])
        assert server.running
    assert caplog.text == ""


def test_a_storm_of_reconnecting_clients_at_the_cap_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), serving(hello, limits=Limits(connections=16)) as server:
        for _ in range(20):
            with attackers(server, 25, b"G"):
                assert ask(server, GET).status == 200
        assert server.running
    assert caplog.text == ""


def test_one_host_cannot_take_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entry, "limits", lambda entry, peer: True)  # else loopback is not limited
    with serving(hello, limits=Limits(connections=1000, per_peer=5)) as server:
        others = [Client.of(server, source="127.0.0.3") for _ in range(5)]
        with attackers(server, 20) as clients:
            assert all(client.ended() for client in clients[:15])
            for client in others:
                client.say(GET)
                assert client.answer().status == 200
                client.sock.close()


def test_loopback_is_one_peer_without_a_limit() -> None:
    with serving(hello, limits=Limits(per_peer=5)) as server, attackers(server, 20) as clients:
        for client in clients:
            client.say(GET)
            assert client.answer().status == 200


def body(size: int, sent: int) -> bytes:
    """A POST of this size, of which so much is there."""
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * sent


def test_bodies_held_for_all_clients_together_have_a_limit_and_the_largest_makes_room() -> None:
    with serving(hello, limits=Limits(buffered=1_000_000, request_s=60.0)) as server:
        with attackers(server, 1, body(500_000, 400_000)) as largest, attackers(server, 3, body(400_000, 250_000)):
            assert largest[0].ended()
            assert ask(server, body(100_000, 100_000)).status == 200
        poll(lambda: ask(server, body(900_000, 900_000)).status == 200, what="the memory of clients that went is free again")


def test_a_request_that_is_refused_is_held_no_longer() -> None:
    limits = Limits(buffered=1_000_000, changes=0, linger_s=60.0)
    with serving(hello, limits=limits) as server, attackers(server, 3) as clients:
        for client in clients:
            client.say(body(600_000, 600_000))
            assert client.answer().status == 503


def test_a_client_that_resets_while_it_is_refused_takes_nobody_with_it() -> None:
    with serving(hello, limits=Limits(buffered=100_000)) as server:
        for _ in range(20):
            with attackers(server, 10, body(1_000_000, 90_000)) as clients:
                for client in clients:
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        is_well(server)


def test_answers_that_nobody_takes_have_a_limit_and_who_takes_none_the_longest_makes_room() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = bytes(bytearray(BIG)) * 8  # a copy for each
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    cut = set[int]()

    def are_cut() -> bool:
        cut.update(n for n, client in enumerate(clients) if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return len(cut) >= 4  # what is left is within the limit

    with serving(app, limits=Limits(unsent=20_000_000, write_s=60.0)) as server, attackers(server, 6, GET) as clients:
        poll(are_cut)
        assert ask(server, GET).status == 200


def test_an_answer_that_many_do_not_take_counts_once() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(len(HUGE)))])
        return [HUGE]

    with serving(app, limits=Limits(unsent=len(HUGE) + 100_000)) as server, attackers(server, 20, GET) as clients:
        for client in clients:
            assert len(client.answer().body) == len(HUGE)


def test_slow_changes_do_not_hold_up_reads() -> None:
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            go_on.wait(20)
        return hello(environ, start_response)

    change = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"
    with serving(app) as server, attackers(server, 30, change) as clients:
        is_well(server)
        go_on.set()
        for client in clients:
            assert client.answer().body == b"ok"


def test_changes_beyond_those_that_may_wait_are_told_to_come_again() -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            entered.release()
            go_on.wait(20)
        return hello(environ, start_response)

    with serving(app, workers=4, limits=Limits(changes=3)) as server, attackers(server, 2, body(2, 2)) as working:
        assert entered.acquire(timeout=10)
        assert entered.acquire(timeout=10)
        with attackers(server, 4, body(2, 2)) as clients:
            refused = poll(lambda: select.select([client.sock for client in clients], [], [], 0)[0])
            is_well(server)
            go_on.set()
            answers = {client.sock: client.answer() for client in (*working, *clients)}
        assert sorted(answer.status for answer in answers.values()) == [200] * 5 + [503]
        assert answers[refused[0]].headers["Retry-After"] == "1"


def test_a_request_that_waited_too_long_for_a_worker_is_not_carried_out() -> None:
    called: list[str] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        called.append(environ["PATH_INFO"])
        return hello(environ, start_response)

    with serving(app, limits=Limits(queue_s=-1.0)) as server:
        told = ask(server, GET)
        assert (told.status, told.headers["Retry-After"]) == (503, "1")
    assert called == []


def test_without_free_descriptors_the_oldest_make_room_and_the_server_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(hello) as server, attackers(server, 10, b"GET / HT") as clients:
        is_well(server)  # and so all attackers have been accepted
        late, fillers = [socket.socket() for _ in range(20)], []
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(os.dup(0))
            for sock in late:
                sock.connect(("127.0.0.1", port_of(server)))
            poll(lambda: "cannot accept reason=Too many open files" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
            for sock in late:
                sock.close()
        is_well(server)
        assert clients[0].ended()
        assert server.running
    assert len(caplog.records) < 50  # a pause after each, not a loop
