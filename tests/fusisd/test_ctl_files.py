"""fusisctl plan and apply: the real application over a core in memory, on a Unix socket."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from fusisd.commands import SetGlobals
from tests.fusisd.test_ctl_v1 import Ctl, LivelyCore
from tests.fusisd.test_ctl_v1 import core as core
from tests.fusisd.test_ctl_v1 import ctl as ctl
from tests.fusisd.test_ctl_v1 import web as web

EXAMPLE = Path(__file__).parents[2] / "docs/examples/lb.toml"
TABLE = """
[services.web]
protocol = "tcp"
address = "10.0.0.1"
port = 80
destinations.rs1 = { address = "10.0.0.11", port = 80, weight = 2 }
"""
DIFF = """\
+ service new
+     protocol: tcp
+     address: 10.0.0.1
+     port: 80
+     scheduler: rr
+     managed_by: lb
+ destination new/rs1
+     address: 10.0.0.11
+     port: 80
+     weight: 2
+     method: route
+     managed_by: lb
"""


def test_a_file_is_planned_applied_and_then_there_is_nothing_to_do(core: LivelyCore, ctl: Ctl, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "lb.toml"
    file.write_text(TABLE.replace("web", "new"))
    assert ctl("plan", "-f", str(file)) == (0, DIFF, "")
    assert core.intent.services == {}
    assert ctl("apply", "-f", str(file)) == (0, DIFF, "")
    assert ctl("apply", "--file", str(file)) == (0, "nothing to do\n", "")
    assert ctl("plan", "-f", str(file)) == (0, "nothing to do\n", "")
    file.write_text(TABLE.replace("web", "new").replace("weight = 2", "weight = 3"))
    assert ctl("plan", "-f", str(file))[1] == "~ destination new/rs1\n-     weight: 2\n+     weight: 3\n"
    file.write_text("services = {}")
    drains = "- service new (when its connections have ended)\n"
    assert ctl("plan", "-f", str(file)) == (0, drains, "")
    status, said, error = ctl("apply", "-f", str(file))  # another team's file may be called lb.toml, too
    assert (status, said, core.intent.services["new"].drain_s) == (2, "", None)
    assert 'managed_by = "lb"' in error
    file.write_text('managed_by = "lb"\nservices = {}')
    assert json.loads(ctl("apply", "-f", str(file), "--json")[1])["changes"][0]["action"] == "drain"


def test_prune_removes_what_the_file_did_not_make(core: LivelyCore, web: Ctl, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "lb.json"
    file.write_text('{"services": {}}')
    assert web("plan", "-f", str(file)) == (0, "nothing to do\n", "")
    assert web("plan", "-f", str(file), "--prune")[1] == "- service web (when its connections have ended)\n"
    assert core.intent.services["web"].drain_s is None
    assert web("apply", "-f", str(file), "--prune")[0] == 0
    assert core.intent.services["web"].drain_s == 60.0


def test_the_example_of_the_documents_is_applied(core: LivelyCore, ctl: Ctl) -> None:  # noqa: F811
    assert ctl("apply", "-f", str(EXAMPLE))[0] == 0
    assert list(core.intent.services) == ["web", "dns", "api"]
    assert (core.intent.timeouts.tcp_s, core.intent.ranges) == (900, ("10.0.0.96/27",))
    assert ctl("plan", "-f", str(EXAMPLE)) == (0, "nothing to do\n", "")


def test_settings_and_stdin(core: LivelyCore, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO('{"managed_by": "x", "ranges": ["10.9.0.0/24"], "services": {}}'))
    said = '~ settings\n-     ranges: []\n+     ranges: ["10.9.0.0/24"]\n'
    assert ctl("apply", "-f", "-") == (0, said, "")
    assert core.seen[-1][0] == SetGlobals(None, ("10.9.0.0/24",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TABLE.replace("weight = 2", "weight = -2"), "services.web.destinations.rs1.weight -2 must be a whole number"),
        (TABLE.replace('"10.0.0.11", port = 80', '"10.0.0.11", port = 81'), "services.web.destinations.rs1: method route"),
        (TABLE.replace("weight", "wieght"), "services.web.destinations.rs1.wieght is not known"),
        (TABLE.replace('address = "10.0.0.1"', "address = 2026-11-01"), "services.web.address is a date"),
        (TABLE.replace("port = 80\n", "port = nan\n"), "services.web.port nan is not finite"),
        (TABLE + TABLE, "Cannot declare ('services', 'web') twice (at line 8"),
        ('{"services": {}, "services": {}}', "no valid JSON: key 'services' stands twice"),
        ("web", "Expected '=' after a key"),
    ],
)
def test_what_is_wrong_names_file_object_and_field(ctl: Ctl, tmp_path: Path, text: str, said: str) -> None:  # noqa: F811
    file = tmp_path / "lb.toml"
    file.write_text(text)
    for verb in ("plan", "apply"):
        status, printed, error = ctl(verb, "-f", str(file))
        assert (status, printed) == (1, ""), error
        assert error.startswith(f"fusisctl: {file}: "), error
        assert said in error
    missing = tmp_path / "none"
    assert ctl("plan", "-f", str(missing))[2] == f"fusisctl: cannot read {missing}: No such file or directory\n"
