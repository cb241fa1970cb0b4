"""Who may write, and the token's file."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from fusisd.errors import StartupError
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy, load_or_make_token
from tests.fusisd.web_helpers import SERVICE, TOKEN, MemoryCore, call

STRICT = WritePolicy.for_token(TOKEN)
LENIENT = WritePolicy.for_token(TOKEN, allow_plaintext_writes=True)
BEARER = f"Bearer {TOKEN}"


def post(policy: WritePolicy, peer: str, authorization: str | None) -> int:
    """The status of a POST that is fine but for who sends it; a refused one must not reach the core."""
    core = MemoryCore()
    environ = {} if authorization is None else {"HTTP_AUTHORIZATION": authorization}
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


def test_the_token_is_made_once_for_root_s_eyes_only(tmp_path: Path) -> None:
    path = tmp_path / "token"
    before = os.umask(0)
    try:
        token = load_or_make_token(path)
    finally:
        os.umask(before)
    assert len(token) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_make_token(path) == token
    assert [entry.name for entry in tmp_path.iterdir()] == ["token"]


def test_each_installation_has_a_token_of_its_own(tmp_path: Path) -> None:
    assert load_or_make_token(tmp_path / "a") != load_or_make_token(tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "mode"), [("", 0o600), ("short", 0o600), ("long enough to be one", 0o640)]
)
def test_a_token_that_is_none_or_that_others_can_read_stops_the_start(
    tmp_path: Path, content: str, mode: int
) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(StartupError, match="remove it to get a new"):
        load_or_make_token(path)


def test_a_state_directory_that_is_absent_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot read or make the token file"):
        load_or_make_token(tmp_path / "absent" / "token")
