"""What no client should send, by TCP to the real server: each is a clear JSON 4xx in both dialects, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.http1 import BODY_LIMIT
from fusisd.web.server import WebServer
from tests.fusisd.web_helpers import SERVICE, TOKEN, MemoryCore, ask, serving

WEB = {"name": "web", "protocol": "tcp", "address": "10.0.0.1", "port": 80}
GOOD = {"/services": SERVICE, "/v1/services": WEB}
AUTHORIZED = f"Authorization: Bearer {TOKEN}\r\n"
PLAIN = "Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def core() -> MemoryCore:
    return MemoryCore()


@pytest.fixture(scope="module")
def server(core: MemoryCore) -> Iterator[WebServer]:
    with serving(make_app(core, WritePolicy.for_token(TOKEN))) as running:
        yield running


def request(path: str, body: bytes, headers: str = PLAIN, method: str = "POST", length: str | None = None) -> bytes:
    size = f"Content-Length: {len(body)}\r\n" if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{AUTHORIZED}{headers}{size}\r\n"
    return head.encode() + body


def wrong(good: dict[str, Any]) -> dict[str, tuple[dict[str, Any], int]]:
    """What is sent, and the status; `body` is a good one unless it is said."""
    sound = json.dumps(good).encode()
    (port,) = [name for name in good if name.lower() == "port"]
    deep = b"[" * 100_000
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(sound), sound)
    return {
        "bad JSON": ({"body": sound[:-1]}, 400),
        "no body": ({"body": b""}, 400),
        "no object": ({"body": b"[]"}, 400),
        "no UTF-8": ({"body": b'{"name":"\xff"}'}, 400),
        "wrong type": ({"body": json.dumps({**good, port: "80"}).encode()}, 400 if "Name" in good else 422),
        "wrong range": ({"body": json.dumps({**good, port: 65536}).encode()}, 422),
        "a number of thousands of digits": ({"body": sound.replace(b"80", b"8" * 5000)}, 400),
        "too large": ({"body": b" " * (BODY_LIMIT + 1)}, 413),
        "said to be too large": ({"body": b"", "length": f"Content-Length: {BODY_LIMIT + 1}\r\n"}, 413),
        "too deep": ({"body": b'{"a":' + deep}, 400),
        "NaN": ({"body": sound.replace(b"80", b"NaN")}, 400),
        "a key twice": ({"body": sound[:-1] + f',"{port}":81}}'.encode()}, 400),
        "another content type": ({"headers": "Content-Type: text/plain\r\n"}, 415),
        "a form": ({"headers": "Content-Type: application/x-www-form-urlencoded\r\n"}, 415),
        "another method": ({"method": "PROPFIND"}, 405),
        "chunked": ({"body": chunked, "length": "Transfer-Encoding: chunked\r\n"}, 411),
        "chunked, and a length": ({"body": chunked, "headers": PLAIN + "Transfer-Encoding: chunked\r\n"}, 411),
    }


CASES = [(path, name) for path, good in GOOD.items() for name in wrong(good)]


@pytest.mark.parametrize(("path", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_it_is_a_clear_4xx_and_changes_nothing(server: WebServer, core: MemoryCore, path: str, name: str) -> None:
    sent, status = wrong(GOOD[path])[name]
    answer = ask(server, request(path, **{"body": json.dumps(GOOD[path]).encode(), **sent}))
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"].partition(";")[0] in ("application/json", "application/problem+json")
    said = answer.json.get("detail") or answer.json.get("error") or "; ".join(answer.json["errors"].values())
    assert len(said) > 10
    assert core.seen == []


def test_a_field_that_is_not_known_is_told(server: WebServer, core: MemoryCore) -> None:
    sent = {path: request(path, json.dumps({**good, "wieght": 3}).encode()) for path, good in GOOD.items()}
    answer = ask(server, sent["/v1/services"])
    assert (answer.status, answer.json["field"], core.seen) == (422, "wieght", [])
    answer = ask(server, sent["/services"])
    assert (answer.status, answer.headers["X-Fusis-Ignored-Keys"]) == (200, "wieght"), "2016 let them pass"
