"""fusisctl's changes against the real application on a Unix socket, with a core in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusisd.commands import Adopt, CancelDrain, DeleteDestination, DeleteService, Pause, Release
from fusisd.ctl.__main__ import main
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.server import UnixListener
from pyipvs import ServiceKey
from tests.fusisd.test_web_v1 import ONE, WEB
from tests.fusisd.web_helpers import TOKEN, MemoryCore, call, serving


@pytest.fixture
def core() -> MemoryCore:
    return MemoryCore()


@pytest.fixture
def ctl(core: MemoryCore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs fusisctl; exit status, what it printed, what it said on stderr. There is a service web with d1."""
    app = make_app(core, WritePolicy.for_token(TOKEN))
    call(app, "PUT", "/v1/services/web", {**WEB, "destinations": {"d1": ONE}})

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["--socket", str(tmp_path / "s"), *words])
        output = capsys.readouterr()
        return status, output.out, output.err

    with serving(app, UnixListener(str(tmp_path / "s"))):
        yield run


def test_a_drain_is_begun_shown_and_taken_back(ctl: Any, core: MemoryCore) -> None:
    assert ctl("drain", "web/d1", "--limit", "5") == (0, "", "")
    assert core.seen[-1][0] == DeleteDestination("web", "d1", 5.0)
    assert ctl("drains")[1] == "web/d1: 0 active, 0 inactive, 5 s left ()\n"
    assert ctl("undrain", "web/d1")[0] == 0
    assert core.seen[-1][0] == CancelDrain("web", "d1")
    assert ctl("drain", "web")[0] == 0
    assert core.seen[-1][0] == DeleteService("web", 60.0)


def test_waiting_ends_when_nothing_drains_any_more(ctl: Any, core: MemoryCore) -> None:
    status, _, said = ctl("drain", "web", "--wait")
    assert status == 0
    assert said.rstrip().endswith("gone")


def test_why_says_how_it_stands(ctl: Any) -> None:
    assert ctl("why", "web")[1] == "web: applied\n  d1: up, weight 3, 0 active\n"
    assert ctl("why", "web/d1")[0] == 0
    assert ctl("why", "web/d9") == (1, "web: applied\n", "fusisctl: service web has no destination 'd9'\n")
    status, _, said = ctl("why", "nosuch")
    assert (status, said) == (1, "fusisctl: there is no service 'nosuch'\n")


def test_ownership_and_pauses(ctl: Any, core: MemoryCore) -> None:
    status, _, said = ctl("adopt", "tcp/10.0.0.9:80", "old")
    assert (status, "not ours" in said) == (1, True)
    assert ctl("release", "web")[0] == 0
    assert core.seen[-1][0] == Release("web")
    assert ctl("pause", "600")[0] == 0
    assert core.seen[-1][0] == Pause(600.0)
    assert Adopt("old", ServiceKey.parse("tcp/10.0.0.9:80")) not in [command for command, _ in core.seen]


def test_what_is_exported_can_be_imported(ctl: Any, tmp_path: Path) -> None:
    file = tmp_path / "lb.json"
    assert ctl("export", str(file))[0] == 0
    assert json.loads(ctl("export")[1]) == json.loads(file.read_text())
    assert ctl("import", str(file)) == (0, "web: as in the file\n", "")
    file.write_text("{")
    status, _, said = ctl("import", str(file))
    assert (status, str(file) in said) == (1, True)
    assert ctl("export", str(tmp_path / "no" / "where"))[0] == 1
