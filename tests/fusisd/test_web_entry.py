"""Who is let in, and what every answer carries for browsers."""

from __future__ import annotations

import ipaddress

import pytest

from fusisd.web.entry import Entry
from fusisd.web.http1 import SECURITY
from tests.fusisd.web_helpers import GET, Client, ask, hello, serving

ENTRY = Entry(host_names=frozenset({"lb1.example"}), trusted_proxies=(ipaddress.ip_network("10.9.0.0/16"),))


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.2", "10.0.0.2:8000", "[::1]", "[fd00::2]:8000", "localhost", "LOCALHOST:80"),
        *("lb1.example", "LB1.example.:443", None),
    ],
)
def test_addresses_localhost_and_configured_names_are_ours(host: str | None) -> None:
    assert ENTRY.answers_to(host, "10.0.0.9")


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "evil.example:8000", "lb1.example.evil", "x.localhost"),
        *("10.0.0.2.evil", "0x7f.1", "lb1.example@evil", "[evil]", "[::1", "::1", "10.0.0.2:"),
        *("10.0.0.2:123456", "10.0.0.2:80:80", "lb1.example/", " "),
    ],
)
def test_other_names_are_not_ours_though_a_tunnel_leads_a_browser_to_the_socket(host: str) -> None:
    assert not ENTRY.answers_to(host, "10.0.0.9")
    assert not ENTRY.answers_to(host, "unix")


@pytest.mark.parametrize("host", ["fusisd", "fusis:80", "2130706433"])
def test_a_name_without_a_dot_is_ours_over_the_socket_alone(host: str) -> None:
    assert not ENTRY.answers_to(host, "10.0.0.9")
    assert ENTRY.answers_to(host, "unix")


@pytest.mark.parametrize(
    ("peer", "limited"),
    [("unix", False), ("127.0.0.1", False), ("::1", False), ("10.9.1.1", False), ("10.8.1.1", True), ("fd00::9", True)],
)
def test_one_peer_has_a_limit_unless_it_may_be_many_clients(peer: str, limited: bool) -> None:
    assert ENTRY.limits(peer) is limited


@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE", b"OPTIONS"])
def test_a_request_for_another_name_is_misdirected_and_reaches_no_worker(method: bytes) -> None:
    with serving(lambda *_: pytest.fail("called")) as server, Client.of(server) as client:
        client.say(method + b" / HTTP/1.1\r\nHost: evil.example:8000\r\n\r\n")
        answer = client.answer()
        assert answer.status == 421
        assert "--host-name" in answer.json["error"]
        assert client.ended()


def test_every_answer_carries_what_keeps_browsers_from_mischief() -> None:
    def own(environ: object, start_response: object) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "0"), ("content-security-policy", "default-src 'self'")])  # type: ignore[operator]
        return []

    wanted = {name.decode().title(): value.decode() for name, value in SECURITY}
    with serving(hello) as server:
        for request in (GET, b"GET / HTTP/1.1\r\nHost: evil\r\n\r\n", b"nonsense\r\n\r\n"):
            headers = ask(server, request).headers
            assert {name: headers.get(name) for name in wanted} == wanted
    with serving(own) as server:
        assert ask(server, GET).headers["Content-Security-Policy"] == "default-src 'self'"
