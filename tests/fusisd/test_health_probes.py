"""Each kind of probe against real sockets: what passes, what fails in which words, and what this machine is to blame for."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd.health import tls
from fusisd.health.asking import Failed, Late, Way
from fusisd.health.dns import RECORDS, question, verdict
from fusisd.health.http import request_bytes
from fusisd.health.probes import probe
from fusisd.model import CheckKind, CheckSpec, CheckTarget

PEM = Path(__file__).with_name("web.test.pem")
LIMIT_S = 10.0
SHORT_S = 0.2

Speaks = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def at(port: int, kind: CheckKind, address: str = "127.0.0.1", **spec: Any) -> CheckTarget:
    return CheckTarget(address, port, CheckSpec(kind, **spec))


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def asked(speaks: Speaks, timeout_s: float = LIMIT_S, kind: CheckKind = CheckKind.HTTP, **spec: Any) -> str:
    """What the probe says of a server that speaks so; nothing of it is left open."""

    async def run() -> str:
        context = None
        if kind is CheckKind.HTTPS:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(PEM)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await speaks(reader, writer)
                await writer.drain()
                writer.close()
            except OSError:
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        async with server:
            before = open_descriptors()
            said = await probe(at(server.sockets[0].getsockname()[1], kind, **spec), timeout_s)
            others = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=LIMIT_S) if others else None
            async with asyncio.timeout(LIMIT_S):
                while open_descriptors() > before:
                    await asyncio.sleep(0.005)
        return said

    return asyncio.run(run())


def saying(*pieces: bytes) -> Speaks:
    async def speaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)

    return speaks


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(LIMIT_S)


# TCP


def test_tcp_passes_where_something_listens_and_says_why_not_elsewhere() -> None:
    with listening() as sock:
        where = at(sock.getsockname()[1], CheckKind.TCP)
        assert asyncio.run(probe(where, LIMIT_S)) == ""
    assert asyncio.run(probe(where, LIMIT_S)) == "connection refused"


def test_a_server_that_does_not_accept_in_time_fails() -> None:
    """A full backlog drops SYNs: what a dead host looks like."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        assert asyncio.run(probe(at(sock.getsockname()[1], CheckKind.TCP), SHORT_S)) == "no answer within 0.2 s"
        for filler in fillers:
            filler.close()


def in_time_wait(port: int) -> int:
    """Connections of this port in state 06 (proc(5), /proc/net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "06" and f":{port:04X}" in row[1] + row[2] for row in rows)


def test_probes_leave_nothing_in_time_wait() -> None:
    async def run(where: CheckTarget) -> None:
        for _ in range(20):
            assert await probe(where, LIMIT_S) == ""

    with socket.create_server(("127.0.0.1", 0), backlog=64) as sock:
        port = sock.getsockname()[1]
        asyncio.run(run(at(port, CheckKind.TCP)))
        assert in_time_wait(port) == 0


def test_a_probe_can_leave_from_an_address_of_its_own() -> None:
    with listening() as sock:
        where = at(sock.getsockname()[1], CheckKind.TCP)
        assert asyncio.run(probe(where, LIMIT_S, Way(source="127.0.0.2"))) == ""
        sock.settimeout(LIMIT_S)
        accepted, whence = sock.accept()
        accepted.close()
        assert whence[0] == "127.0.0.2"


def test_a_mark_is_set_or_the_probe_was_not_made() -> None:
    with listening() as sock:
        where = at(sock.getsockname()[1], CheckKind.TCP)
        try:
            assert asyncio.run(probe(where, LIMIT_S, Way(mark=7))) == ""
        except OSError as error:  # without CAP_NET_ADMIN
            assert error.errno == errno.EPERM


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 6, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("kind", [CheckKind.TCP, CheckKind.HTTP, CheckKind.UDP, CheckKind.SCRIPT])
def test_a_probe_that_this_machine_cannot_make_says_nothing_of_the_server(few_descriptors: None, kind: CheckKind) -> None:
    async def run() -> None:
        taken = []
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.dup(0))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await probe(at(1, kind, argv=("/bin/true",)), LIMIT_S)
        finally:
            for descriptor in taken:
                os.close(descriptor)

    asyncio.run(run())


def test_an_answer_that_came_while_the_loop_was_held_up_is_seen() -> None:
    """Blocked across the deadline: by a little, and the answer counts; by much, and nobody can tell whose fault it was."""

    async def held_up(where: CheckTarget, for_s: float) -> str:
        asking = asyncio.create_task(probe(where, SHORT_S))
        await asyncio.sleep(0)
        time.sleep(for_s)  # a turn of control that takes too long: blocking is what is tested
        return await asking

    with listening() as sock:
        assert asyncio.run(held_up(at(sock.getsockname()[1], CheckKind.TCP), 2 * SHORT_S)) == ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(Late):
            asyncio.run(held_up(at(silent.getsockname()[1], CheckKind.UDP, expect="00"), 2 * SHORT_S))


# HTTP


def test_http_passes_when_code_and_body_are_as_expected() -> None:
    assert asked(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"), body="yes") == ""
    assert asked(saying(b"HTTP/1.1 200 OK\r\n\r\nyes")) == ""
    assert asked(saying(b"HTTP/1.1 404 No\r\n\r\n"), codes=((404, 404),)) == ""
    assert asked(saying(b"HTTP/1.1 503 No\r\n\r\n")) == "answered 503"
    assert asked(saying(b"HTTP/1.1 200 OK\r\n\r\nno"), body="yes") == "the answer's body lacks 'yes'"


def test_the_request_is_what_the_check_asks_for() -> None:
    seen: list[bytes] = []

    async def speaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    assert asked(speaks, method="HEAD", path="/ready?x=1", host="www.example.org") == ""
    assert seen[0].startswith(b"HEAD /ready?x=1 HTTP/1.1\r\nHost: www.example.org\r\n")


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (at(80, CheckKind.HTTP), b"127.0.0.1"),
        (at(443, CheckKind.HTTP), b"127.0.0.1:443"),
        (at(443, CheckKind.HTTPS), b"127.0.0.1"),
        (at(8080, CheckKind.HTTP, "fd00::1"), b"[fd00::1]:8080"),
    ],
)
def test_the_host_is_the_address_unless_told_otherwise(target: CheckTarget, host: bytes) -> None:
    assert b"\r\nHost: " + host + b"\r\n" in request_bytes(target)


@pytest.mark.parametrize("spec", [{"path": "/a b"}, {"host": "a\r\nX: y"}, {"method": ""}, {"path": "/\u00e9"}])
def test_a_check_that_would_garble_the_request_fails_without_asking(spec: dict[str, str]) -> None:
    with pytest.raises(Failed, match="the check itself is wrong"):
        request_bytes(at(80, CheckKind.HTTP, **spec))


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("speaks", "timeout_s", "said"),
    [
        (silence, SHORT_S, "no answer within 0.2 s"),
        (drip, SHORT_S, "no answer within 0.2 s"),
        (flood, LIMIT_S, "the answer's body lacks 'yes'"),
        (hang_up, LIMIT_S, "closed the connection without an answer"),
        (saying(b"220 smtp ready\r\n"), LIMIT_S, "does not speak HTTP/1: '220 smtp ready\\r\\n'"),
    ],
)
def test_bad_servers_fail_in_time_and_leave_nothing_open(speaks: Speaks, timeout_s: float, said: str) -> None:
    assert asked(speaks, timeout_s, body="yes") == said


# HTTPS


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test certificate is one of the system's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
    tls._context.cache_clear()
    yield
    tls._context.cache_clear()


def test_https_without_a_name_is_encrypted_and_not_verified() -> None:
    assert asked(saying(b"HTTP/1.1 200 OK\r\n\r\nyes"), kind=CheckKind.HTTPS, body="yes") == ""
    assert asked(saying(b"HTTP/1.1 503 No\r\n\r\n"), kind=CheckKind.HTTPS) == "answered 503"


def test_https_with_a_name_is_verified(trusted: None) -> None:
    answer = saying(b"HTTP/1.1 200 OK\r\n\r\nyes" + b"x" * 100_000)
    assert asked(answer, kind=CheckKind.HTTPS, tls_name="web.test", body="yes") == ""
    said = asked(answer, kind=CheckKind.HTTPS, tls_name="other.test")
    assert said.startswith("its certificate is not accepted: Hostname mismatch")


def test_a_certificate_that_nobody_vouches_for_fails() -> None:
    said = asked(silence, kind=CheckKind.HTTPS, tls_name="web.test")
    assert said.startswith("its certificate is not accepted: self")  # "self-signed certificate"


def test_what_speaks_no_tls_fails() -> None:
    async def run(speaks: Speaks, timeout_s: float) -> str:
        async with await asyncio.start_server(speaks, "127.0.0.1", 0) as server:
            said = await probe(at(server.sockets[0].getsockname()[1], CheckKind.HTTPS), timeout_s)
            others = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        return said

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    assert asyncio.run(run(plain, LIMIT_S)) == "TLS failed: wrong version number"
    assert asyncio.run(run(silence, SHORT_S)) == "no answer within 0.2 s"
    assert asyncio.run(run(gone, LIMIT_S)) in (
        "closed the connection during the TLS handshake",
        "connection reset by peer",
    )


# UDP and DNS


def datagram(answer: Callable[[bytes], list[bytes]], timeout_s: float, kind: CheckKind, **spec: Any) -> str:
    """What the probe says of a server that answers so."""

    async def run() -> str:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)

            def serve() -> None:
                data, whence = sock.recvfrom(65535)
                for piece in answer(data):
                    sock.sendto(piece, whence)

            loop.add_reader(sock, serve)
            try:
                return await probe(at(sock.getsockname()[1], kind, **spec), timeout_s)
            finally:
                loop.remove_reader(sock)

    return asyncio.run(run())


def test_udp_passes_when_the_answer_holds_what_is_expected() -> None:
    def echo(data: bytes) -> list[bytes]:
        return [b"<" + data + b">"]

    assert datagram(echo, LIMIT_S, CheckKind.UDP, send="70 69 6e 67", expect="696e") == ""
    assert datagram(echo, LIMIT_S, CheckKind.UDP, send="70", expect="ff") == "answered '<p>' without what is expected"
    assert datagram(echo, LIMIT_S, CheckKind.UDP) == "", "an empty datagram, and any answer"
    assert datagram(echo, LIMIT_S, CheckKind.UDP, send="xy").startswith("the check itself is wrong")


def test_udp_silence_passes_unless_something_is_expected() -> None:
    assert datagram(lambda _: [], SHORT_S, CheckKind.UDP, send="00") == ""
    assert datagram(lambda _: [], SHORT_S, CheckKind.UDP, send="00", expect="00") == "no answer within 0.2 s"


@pytest.mark.parametrize("spec", [{}, {"expect": "00"}])
def test_a_udp_port_that_nobody_has_open_fails(spec: dict[str, str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert asyncio.run(probe(at(port, CheckKind.UDP, **spec), LIMIT_S)) == "connection refused"


RECORD = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes(4)
ALIAS = b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 60, 4) + bytes(4)


def answered(code: int = 0, records: bytes = RECORD, count: int = 1) -> Callable[[bytes], list[bytes]]:
    """A name server: what others sent and what is no answer first, then the question with these records."""

    def answer(query: bytes) -> list[bytes]:
        assert query[2:12] == struct.pack(">5H", 0x0100, 1, 0, 0, 0)
        assert query[12:] == b"\x03www\x07example\x03org\0" + struct.pack(">HH", 1, 1)
        head = struct.pack(">HHHHHH", int.from_bytes(query[:2], "big"), 0x8180 | code, 1, count, 0, 0)
        other = bytes([query[0] ^ 1]) + head[1:]
        return [b"", query, other + query[12:] + RECORD, head + query[12:] + records]

    return answer


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (answered(), ""),
        (answered(code=3), "answered NXDOMAIN"),
        (answered(code=2), "answered SERVFAIL"),
        (answered(code=9), "answered error 9"),
        (answered(records=b"", count=0), "answered without a record of that type"),
        (answered(records=ALIAS), "answered without a record of that type"),
        (answered(records=ALIAS + RECORD, count=2), ""),
        (answered(records=RECORD[:-1]), "answered a message that cannot be read"),
    ],
)
def test_dns_passes_with_a_record_of_the_type(server: Callable[[bytes], list[bytes]], said: str) -> None:
    assert datagram(server, LIMIT_S, CheckKind.DNS, name="www.example.org.", record="a") == said


@pytest.mark.parametrize("spec", [{"name": "a" * 64}, {"name": "a..b"}, {"name": "\u00e9"}, {"record": "A6"}])
def test_a_question_that_cannot_be_asked_fails(spec: dict[str, str]) -> None:
    assert datagram(lambda _: [], LIMIT_S, CheckKind.DNS, **spec).startswith("the check itself is wrong")


def test_the_root_can_be_asked_for() -> None:
    assert question(".", RECORDS["NS"], 7) == question("", RECORDS["NS"], 7)
    assert question(".", RECORDS["NS"], 7)[12:] == b"\0\0\x02\0\x01"


@given(st.binary(max_size=80), st.integers(0, 3), st.integers(0, 65535))
def test_any_datagram_gets_a_verdict(data: bytes, questions: int, answers: int) -> None:
    assert verdict(data, 1, 7) is None or data[:2] == b"\0\x07"
    said = verdict(struct.pack(">6H", 7, 0x8180, questions, answers, 0, 0) + data, 1, 7)
    assert said is not None
    assert said or answers
