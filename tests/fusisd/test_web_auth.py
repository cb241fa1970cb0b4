"""Who may do what."""

from __future__ import annotations

import logging

import pytest

from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from tests.fusisd.web_helpers import SERVICE, TOKEN, MemoryCore, call

STRICT = WritePolicy.for_token(TOKEN)
PRIVATE = WritePolicy.for_token(TOKEN, private=True)
LENIENT = WritePolicy.for_token(TOKEN, allow_plaintext_writes=True)
BEARER = f"Bearer {TOKEN}"


def post(policy: WritePolicy, peer: str, authorization: str | None, **more: str) -> int:
    """The status of a POST that is fine but for who sends it; a refused one must not reach the core."""
    core = MemoryCore()
    environ = more if authorization is None else {"HTTP_AUTHORIZATION": authorization, **more}
    status = call(make_app(core, policy), "POST", "/services", SERVICE, peer, **environ).status
    assert bool(core.seen) == (status == 200)
    return status


@pytest.mark.parametrize("policy", [STRICT, LENIENT])
def test_the_unix_socket_needs_no_token(policy: WritePolicy) -> None:
    assert post(policy, "unix", None) == 200


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1"])
def test_loopback_needs_the_token(peer: str) -> None:
    assert post(STRICT, peer, BEARER) == 200
    assert post(STRICT, peer, None) == 401


@pytest.mark.parametrize("peer", ["10.0.0.9", "fd00::9", "128.0.0.1", "", "unix ", "localhost"])
def test_another_host_may_not_write_over_plain_tcp_even_with_the_token(peer: str) -> None:
    assert post(STRICT, peer, BEARER) == 403
    assert post(STRICT, peer, None) == 403


def test_another_host_may_write_with_the_token_when_it_is_allowed() -> None:
    assert post(LENIENT, "10.0.0.9", BEARER) == 200
    assert post(LENIENT, "10.0.0.9", None) == 401


def test_another_host_may_write_with_the_token_over_tls() -> None:
    tls = {"wsgi.url_scheme": "https"}
    assert post(STRICT, "10.0.0.9", BEARER, **tls) == 200
    assert post(STRICT, "10.0.0.9", None, **tls) == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"HTTP_SEC_FETCH_SITE": "cross-site"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "same-site"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "same-origin", "HTTP_ORIGIN": "https://behind.a.proxy"}, 200),
        ({"HTTP_SEC_FETCH_SITE": "none"}, 200),
        ({"HTTP_ORIGIN": "http://evil.example"}, 403),
        ({"HTTP_ORIGIN": "null"}, 403),
        ({"HTTP_ORIGIN": "http://10.0.0.2:8001"}, 403),
        ({"HTTP_ORIGIN": "http://10.0.0.2:8000"}, 200),
    ],
)
def test_a_page_of_another_site_changes_nothing_even_with_the_token(headers: dict[str, str], status: int) -> None:
    assert post(STRICT, "127.0.0.1", BEARER, HTTP_HOST="10.0.0.2:8000", **headers) == status
    assert post(STRICT, "unix", None, HTTP_HOST="10.0.0.2:8000", **headers) == status, "`ssh -L` leads a browser there"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", ["/services", "/v1/services"])
def test_what_a_form_can_send_is_no_change(kind: str, path: str) -> None:
    core = MemoryCore()
    environ = {"HTTP_AUTHORIZATION": BEARER, "CONTENT_TYPE": kind}
    assert call(make_app(core, STRICT), "POST", path, SERVICE, "127.0.0.1", **environ).status == 415
    assert core.seen == []


@pytest.mark.parametrize("path", ["/services", "/status", "/metrics", "/v1/services", "/v1/events"])
def test_private_closes_reads_as_writes(path: str) -> None:
    app = make_app(MemoryCore(), PRIVATE)
    assert call(app, "GET", path, peer="unix").status == 200
    assert call(app, "GET", path, peer="127.0.0.1", HTTP_AUTHORIZATION=BEARER).status == 200
    assert call(app, "GET", path, peer="127.0.0.1").status == 401
    assert call(app, "HEAD", path, peer="127.0.0.1").status == 401
    assert call(app, "GET", path, peer="10.0.0.9", HTTP_AUTHORIZATION=BEARER).status == 403
    assert call(app, "GET", path, peer="10.0.0.9", HTTP_AUTHORIZATION=BEARER, **{"wsgi.url_scheme": "https"}).status == 200


def test_private_leaves_open_whether_we_answer() -> None:
    assert call(make_app(MemoryCore(), PRIVATE), "GET", "/healthz", peer="10.0.0.9").status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \xff",
    ]
    + [f"Bearer {TOKEN.upper()}"],
)
def test_a_wrong_token_is_401(authorization: str) -> None:
    assert post(LENIENT, "127.0.0.1", authorization) == 401


@pytest.mark.parametrize("authorization", [f"bearer {TOKEN}", f"BEARER   {TOKEN} "])
def test_the_scheme_s_case_and_spaces_do_not_matter(authorization: str) -> None:
    assert post(STRICT, "127.0.0.1", authorization) == 200


def test_401_says_how_and_403_says_what_to_do() -> None:
    app = make_app(MemoryCore(), STRICT)
    answer = call(app, "DELETE", "/services/web", peer="127.0.0.1")
    assert answer.headers["Www-Authenticate"] == 'Bearer realm="fusisd"'
    assert "Authorization: Bearer TOKEN" in answer.json["error"]
    assert "--allow-plaintext-writes" in call(app, "DELETE", "/services/web", peer="10.0.0.9").json["error"]


def test_every_change_is_guarded_before_anything_of_it_is_looked_at() -> None:
    app = make_app(MemoryCore(), STRICT)
    for method, path in [
        ("POST", "/services"),
        ("DELETE", "/services/x"),
        ("POST", "/services/x/destinations"),
        ("DELETE", "/services/x/destinations/y"),
    ]:
        assert call(app, method, path, b"{nonsense", peer="127.0.0.1").status == 401


def test_reads_are_open_to_everybody() -> None:
    app = make_app(MemoryCore(), STRICT)
    for path in ("/services", "/status", "/healthz"):
        assert call(app, "GET", path, peer="10.0.0.9").status == 200


def test_neither_the_token_nor_a_guess_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        post(STRICT, "127.0.0.1", BEARER)
        post(STRICT, "127.0.0.1", "Bearer guessed-in-vain")
    assert TOKEN not in caplog.text
    assert "guessed-in-vain" not in caplog.text
    assert TOKEN not in repr(STRICT)
