"""The tokens: their files, rotation, and its route."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from fusisd.errors import StartupError
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.tokens import Tokens
from tests.fusisd.web_helpers import SERVICE, Answer, MemoryCore, call


class Clock:
    """Set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def told(state_dir: Path) -> str:
    return (state_dir / "token").read_text().strip()


def test_the_first_token_is_made_once_for_root_s_eyes_only(tmp_path: Path, clock: Clock) -> None:
    before = os.umask(0)
    try:
        assert Tokens.load(tmp_path, clock).valid() == Tokens.load(tmp_path, clock).valid()
    finally:
        os.umask(before)
    assert len(told(tmp_path)) >= 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["token", "tokens.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_each_installation_has_a_token_of_its_own(tmp_path: Path, clock: Clock) -> None:
    tokens = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Tokens.load(tmp_path / name, clock)
        tokens.append(told(tmp_path / name))
    assert tokens[0] != tokens[1]


def test_only_a_hash_is_needed_and_kept(tmp_path: Path, clock: Clock) -> None:
    tokens = Tokens.load(tmp_path, clock)
    token = told(tmp_path)
    (tmp_path / "token").unlink()
    again = Tokens.load(tmp_path, clock)
    assert again.find(token) is not None
    assert again.find(token[:-1]) is None
    assert not (tmp_path / "token").exists()
    assert token not in (tmp_path / "tokens.json").read_text() + repr(vars(tokens))


def test_a_token_that_was_there_before_hashes_were_goes_on_counting(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "token").write_text("made-by-an-earlier-fusisd\n")
    (tmp_path / "token").chmod(0o600)
    assert Tokens.load(tmp_path, clock).find("made-by-an-earlier-fusisd") is not None


@pytest.mark.parametrize(
    ("name", "content", "mode"),
    [
        ("token", "", 0o600),
        ("token", "short", 0o600),
        ("token", "long enough to be one", 0o640),
        ("tokens.json", "", 0o600),
        ("tokens.json", "[]", 0o600),
        ("tokens.json", "{}", 0o600),
        ("tokens.json", '[{"sha256": "x"}]', 0o600),
    ],
)
def test_a_file_that_is_damaged_or_open_stops_the_start(
    tmp_path: Path, clock: Clock, name: str, content: str, mode: int
) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / name).chmod(mode)
    with pytest.raises(StartupError, match="to get a new|chmod 600"):
        Tokens.load(tmp_path, clock)


def test_a_state_directory_that_is_absent_stops_the_start(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(StartupError, match="cannot read or make the tokens"):
        Tokens.load(tmp_path / "absent", clock)


def test_a_rotation_ends_the_old_token_at_once_and_removes_the_file_of_the_first(tmp_path: Path, clock: Clock) -> None:
    tokens = Tokens.load(tmp_path, clock)
    old, new = told(tmp_path), tokens.rotate()
    for one in (tokens, Tokens.load(tmp_path, clock)):
        assert one.find(old) is None
        assert one.find(new) is not None
    assert not (tmp_path / "token").exists()


def test_with_an_overlap_both_count_until_it_is_over(tmp_path: Path, clock: Clock) -> None:
    tokens = Tokens.load(tmp_path, clock)
    old, new = told(tmp_path), tokens.rotate(60.0)
    restarted = Tokens.load(tmp_path, clock)
    for one in (tokens, restarted):
        assert [one.find(token) is not None for token in (old, new)] == [True, True]
    clock.now += 61
    for one in (tokens, restarted):
        assert [one.find(token) is not None for token in (old, new)] == [False, True]


def test_an_overlap_is_not_lengthened_by_the_next_rotation(tmp_path: Path, clock: Clock) -> None:
    tokens = Tokens.load(tmp_path, clock)
    old = told(tmp_path)
    tokens.rotate(60.0)
    tokens.rotate(3600.0)
    assert len(tokens.valid()) == 3
    clock.now += 61
    assert tokens.find(old) is None
    assert len(tokens.valid()) == 2


def test_when_the_file_cannot_be_written_the_old_token_goes_on_counting(tmp_path: Path, clock: Clock) -> None:
    tokens = Tokens.load(tmp_path, clock)
    old = told(tmp_path)
    (tmp_path / "tokens.json.new").mkdir()  # in the way
    assert rotate(tokens, "unix").status == 503
    assert tokens.find(old) is not None


def rotate(tokens: Tokens, peer: str, body: object = None, **environ: str) -> Answer:
    app = make_app(MemoryCore(), WritePolicy(tokens))
    return call(app, "POST", "/v1/token", {} if body is None else body, peer, **environ)  # type: ignore[arg-type]


def test_the_route_rotates_over_the_unix_socket_and_tells_the_token_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens.load(tmp_path, clock)
    with caplog.at_level(logging.DEBUG):
        answer = rotate(tokens, "unix", {"overlap_s": 60})
    token, fingerprint = answer.json["token"], answer.json["fingerprint"]
    assert answer.headers["Cache-Control"] == "no-store"
    core = MemoryCore()
    environ = {"HTTP_AUTHORIZATION": f"Bearer {token}"}
    assert call(make_app(core, WritePolicy(tokens)), "POST", "/services", SERVICE, "127.0.0.1", **environ).status == 200
    assert core.seen[0][1] == f"tcp 127.0.0.1 token={fingerprint}"
    shown = call(make_app(core, WritePolicy(tokens)), "GET", "/v1/token").json["tokens"]
    assert [(row["fingerprint"] == fingerprint, row["until_s"]) for row in shown] == [(True, None), (False, 1060.0)]
    assert token not in caplog.text + json.dumps(shown)


def test_a_token_makes_no_tokens(tmp_path: Path, clock: Clock) -> None:
    tokens = Tokens.load(tmp_path, clock)
    old = told(tmp_path)
    assert rotate(tokens, "127.0.0.1", HTTP_AUTHORIZATION=f"Bearer {old}").status == 403
    assert call(make_app(MemoryCore(), WritePolicy(tokens)), "GET", "/v1/token", peer="127.0.0.1").status == 403
    assert tokens.find(old) is not None


@pytest.mark.parametrize("body", [{"overlap_s": -1}, {"overlap_s": "1"}, {"overlap_s": True}, {"overlap_s": 1e9}, {"x": 1}])
def test_an_overlap_that_is_none_is_refused(tmp_path: Path, clock: Clock, body: object) -> None:
    assert rotate(Tokens.load(tmp_path, clock), "unix", body).status == 422
