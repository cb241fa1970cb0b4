"""fusisctl's commands on the native API: the real application over a core in memory, on a Unix socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusisd.commands import Adopt, CancelDrain, Command, DeleteDestination, DeleteService, Pause, Release, SetGlobals
from fusisd.ctl import drains
from fusisd.ctl.__main__ import main
from fusisd.errors import Conflict
from fusisd.ports import Snapshot
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.server import UnixListener
from pyipvs import ServiceKey, Timeouts
from tests.fusisd.test_web_v1 import FOREIGN
from tests.fusisd.web_helpers import TOKEN, MemoryCore, serving

Ctl = Callable[..., tuple[int, str, str]]


class LivelyCore(MemoryCore):
    """A core in which something happens by itself, one step each time that somebody looks."""

    def __init__(self) -> None:
        super().__init__((FOREIGN,))
        self.happens: list[Callable[[], object]] = []

    def snapshot(self) -> Snapshot:
        if self.happens:
            self.happens.pop(0)()
        return super().snapshot()


@pytest.fixture
def core() -> LivelyCore:
    return LivelyCore()


@pytest.fixture
def ctl(core: LivelyCore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Ctl]:
    """Runs fusisctl; exit status, what it printed, what it said on stderr."""
    path = str(tmp_path / "fusisd.sock")

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["--socket", path, *words])
        output = capsys.readouterr()
        return status, output.out, output.err

    with serving(make_app(core, WritePolicy.for_token(TOKEN)), UnixListener(path)):
        yield run


@pytest.fixture
def web(ctl: Ctl) -> Ctl:
    """With service web and its destination rs1."""
    assert ctl("service", "add", "web", "--address", "10.0.0.1", "--port", "80")[0] == 0
    assert ctl("destination", "add", "web/rs1", "--address", "10.0.0.11", "--port", "80")[0] == 0
    return ctl


def test_a_service_is_added_listed_shown_edited_and_deleted(core: LivelyCore, ctl: Ctl) -> None:
    words = ["--address", "10.0.0.1", "--port", "80", "--scheduler", "wrr", "--persistence", "30", "--netmask", "24"]
    words += ["--vip", "external", "--announce", "when-usable", "--check", '{"kind":"http","path":"/up"}']
    status, said, _ = ctl("service", "add", "web", *words)
    assert (status, said.splitlines()[0].startswith("web tcp/10.0.0.1:80 scheduler=wrr ")) == (0, True)
    assert ctl("service", "list") == (
        0,
        "NAME  KEY              SCHEDULER  DESTINATIONS  STATE    REASON\n"
        "web   tcp/10.0.0.1:80  wrr        0/0           applied\n",
        "",
    )
    assert json.loads(ctl("service", "show", "web", "--json")[1])["check"]["path"] == "/up"
    assert ctl("service", "edit", "web", "--check", "tcp", "--flag", "sched1", "--unset", "netmask")[0] == 0
    service = core.intent.services["web"]
    assert (service.scheduler, service.netmask, service.check is not None) == ("wrr", None, True)
    assert ctl("service", "delete", "web", "--drain", "5") == (0, "web drains; fusisctl drains shows how far it is\n", "")
    assert ctl("service", "list")[1].splitlines()[1].split() == ["web", "tcp/10.0.0.1:80", "wrr", "0/0", "draining"]
    assert ctl("service", "delete", "web", "--now") == (0, "web is gone\n", "")
    assert core.seen[-1] == (DeleteService("web"), "unix")


def test_marks_and_addresses_to_allocate_are_services_too(core: LivelyCore, ctl: Ctl) -> None:
    assert ctl("service", "add", "m", "--fwmark", "7", "--family", "ipv6")[0] == 0
    assert ctl("service", "add", "six", "--port", "53", "--protocol", "udp", "--family", "ipv6", "--json")[0] == 0
    keys = {name: str(service.key) for name, service in core.intent.services.items()}
    assert keys == {"m": "fwmark6/7", "six": "udp/[::]:53"}


def test_a_destination_is_added_edited_and_deleted(core: LivelyCore, web: Ctl) -> None:
    words = ["--address", "10.0.0.12", "--port", "80", "--method", "tunnel", "--tunnel", "gue:6080", "--weight", "3"]
    status, said, _ = web("destination", "add", "web/rs2", *words, "--upper", "9", "--lower", "3", "--tier", "backup")
    assert (status, said.splitlines()[1].split()[:3]) == (0, ["rs2", "10.0.0.12:80", "tunnel"])
    assert core.intent.services["web"].destinations["rs2"].upper_threshold == 9
    assert web("destination", "edit", "web/rs2", "--weight", "0", "--unset", "lower_threshold")[0] == 0
    rs2 = core.intent.services["web"].destinations["rs2"]
    assert (rs2.weight, rs2.upper_threshold, rs2.lower_threshold) == (0, 9, 0)
    status, said, _ = web("service", "show", "web")
    assert [line.split()[0] for line in said.splitlines()] == ["web", "applied,", "NAME", "rs1", "rs2"]
    assert web("destination", "delete", "web/rs2", "--now") == (0, "web/rs2 is gone\n", "")
    assert json.loads(web("destination", "delete", "web/rs1", "--json")[1])["status"]["drain_left_s"] == 60.0


def test_a_drain_is_begun_listed_and_taken_back(core: LivelyCore, web: Ctl) -> None:
    assert web("drain", "web/rs1", "--limit", "30") == (0, "web/rs1 drains, for 30 s at the most\n", "")
    assert web("drains") == (
        0,
        "SERVICE  DESTINATION  ACTIVE  INACTIVE  LEFT  REASON\nweb      rs1          0       0         30s\n",
        "",
    )
    assert web("undrain", "web/rs1") == (0, "web/rs1 is in service\n", "")
    assert core.seen[-1][0] == CancelDrain("web", "rs1")
    assert json.loads(web("drains", "--json")[1]) == {"drains": [], "next": None}
    assert web("drain", "web")[0] == 0
    assert web("undrain", "web", "--json")[0] == 0
    assert core.seen[-1][0] == CancelDrain("web")


def happening(core: LivelyCore, command: Command) -> list[Callable[[], object]]:
    """Nothing for three looks, then the command."""
    return [lambda: None, lambda: None, lambda: None, lambda: core.submit(command, "fusisd")]


def test_waiting_for_a_drain_shows_its_progress_and_ends_with_it(
    core: LivelyCore, web: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "LOOK_EVERY_S", 0.01)
    core.happens = happening(core, DeleteDestination("web", "rs1"))
    status, said, progress = web("drain", "web/rs1", "--wait", "--limit", "30")
    assert (status, said) == (0, "web/rs1 is gone\n")
    assert progress.splitlines()[0] == "web/rs1 [####################] 0 active, 0 inactive, cut in 30 s"


def test_waiting_for_a_drain_that_somebody_takes_back_fails(
    core: LivelyCore, web: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "LOOK_EVERY_S", 0.01)
    core.happens = happening(core, CancelDrain("web", "rs1"))
    status, said, errors = web("drain", "web/rs1", "--wait")
    assert (status, said, errors.splitlines()[-1]) == (1, "", "fusisctl: web/rs1 was taken back into service")


def test_waiting_for_a_drain_whose_service_is_released_says_so(
    core: LivelyCore, web: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "LOOK_EVERY_S", 0.01)
    view = core.snapshot().services[0]

    def released() -> None:
        core.submit(Release("web"), "fusisd")
        core.published = replace(core.published, services=(*core.published.services, replace(view, name="", foreign=True)))

    core.happens = [lambda: None, lambda: None, lambda: None, released]
    status, said, errors = web("drain", "web/rs1", "--wait")
    assert (status, said) == (1, "")
    assert "stands in the kernel as it was: service web was released" in errors.splitlines()[-1]


def test_a_change_can_be_told_only(core: LivelyCore, web: Ctl) -> None:
    before = core.intent
    for words in (
        ("service", "add", "new", "--address", "10.0.0.9", "--port", "80"), ("service", "edit", "web", "--scheduler", "mh"),
        ("service", "delete", "web"), ("destination", "add", "web/rs9", "--address", "10.0.0.19", "--port", "80"),
        ("destination", "edit", "web/rs1", "--weight", "7"), ("destination", "delete", "web/rs1", "--now"),
        ("drain", "web/rs1", "--limit", "3"),
    ):  # fmt: skip
        status, said, _ = web(*words, "--dry-run")
        assert (status, said[:1] in "+~-", core.intent is before) == (0, True, True), words


def test_destinations_are_listed_and_shown(web: Ctl) -> None:
    assert [line.split()[0] for line in web("destination", "list", "web")[1].splitlines()] == ["NAME", "rs1"]
    assert json.loads(web("destination", "show", "web/rs1", "--json")[1])["name"] == "rs1"


def test_adopt_release_and_pause_are_commands(core: LivelyCore, web: Ctl) -> None:
    assert web("adopt")[1].splitlines()[1].split() == ["tcp/10.9.9.9:80", "sh", "1"]
    assert web("adopt", "tcp/10.9.9.9:80")[0] == 2
    status, _, error = web("adopt", "tcp/10.9.9.8:80", "b")
    assert (status, "there is no service tcp/10.9.9.8:80 in the kernel" in error) == (1, True)
    assert web("release", "web") == (0, "tcp/10.0.0.1:80 stands in the kernel and is not ours any more\n", "")
    assert core.seen[-1][0] == Release("web")
    assert web("pause", "300")[0] == 0
    assert core.seen[-1][0] == Pause(300)
    assert web("pause", "--end") == (0, "the pause is over\n", "")
    assert core.seen[-1][0] == Pause(0)
    assert [web("pause")[0], web("pause", "3", "--end")[0]] == [2, 2]


def test_adopt_sends_name_and_key(core: LivelyCore, ctl: Ctl) -> None:
    submit, asked = core.submit, list[Command]()

    def adopting(command: Command, who: str) -> Snapshot:
        asked.append(command)
        assert isinstance(command, Adopt)
        raise Conflict("it is busy")

    core.submit = adopting  # type: ignore[method-assign]
    assert ctl("adopt", "tcp/10.9.9.9:80", "web") == (1, "", "fusisctl: it is busy\n")
    assert asked == [Adopt("web", ServiceKey.parse("tcp/10.9.9.9:80"))]
    core.submit = submit  # type: ignore[method-assign]


def test_settings_are_shown_and_changed_one_by_one(core: LivelyCore, ctl: Ctl) -> None:
    assert ctl("settings")[1] == (
        "tcp_s      (as the kernel has it)\ntcp_fin_s  (as the kernel has it)\nudp_s      (as the kernel has it)\n"
        "ranges     (none)\n"
    )
    assert ctl("settings", "--tcp-timeout", "900", "--range", "10.0.0.96/27", "--range", "fd00::/120")[0] == 0
    assert ctl("settings", "--udp-timeout", "60", "--json")[0] == 0
    assert core.intent.timeouts == Timeouts(900, 0, 60)
    assert core.intent.ranges == ("10.0.0.96/27", "fd00::/120")
    assert ctl("settings", "--no-ranges")[1].endswith("ranges     (none)\n")
    assert core.seen[-1][0] == SetGlobals(None, ())


def test_what_is_exported_is_imported(core: LivelyCore, web: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "lb.json"
    assert web("export", str(file)) == (0, f"exported to {file}\n", "")
    assert web("export")[1] == file.read_text()
    assert web("import", str(file)) == (0, "nothing to do\n", "")
    web("service", "delete", "web", "--now")
    assert web("import", str(file)) == (0, "OUTCOME  OBJECT\ncreated  web\n", "")
    assert list(core.intent.services["web"].destinations) == ["rs1"]


def test_an_import_that_is_refused_fails_and_says_why(core: LivelyCore, web: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "lb.json"
    file.write_text('{"schema": 1, "services": {"b": {"key": "tcp/10.0.0.2:x"}}}')
    status, said, error = web("import", str(file))
    assert (status, said, error.startswith("fusisctl: services.b.key")) == (1, "", True)
    file.write_text("{")
    assert web("import", str(file))[0] == 1
    assert web("import", str(tmp_path / "none"))[2] == f"fusisctl: cannot read {tmp_path}/none: No such file or directory\n"
    assert web("export", str(tmp_path / "none" / "x"))[0] == 1

    def refusing(command: Command, who: str) -> Snapshot:
        raise Conflict("10.0.0.2 is in use")

    core.submit = refusing  # type: ignore[method-assign]
    file.write_text('{"schema": 1, "services": {"b": {"key": "tcp/10.0.0.2:80"}}}')
    assert web("import", str(file)) == (1, "", "fusisctl: 10.0.0.2 is in use\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("service", "add", "web", "--port", "80", "--address", "10.0.0.256"), "address '10.0.0.256' is not an IPv4"),
        (("service", "show", "none"), "there is no service 'none'"),
        (("service", "show", "a b?c"), "there is no service 'a b?c'"),
        (("destination", "edit", "none/d1", "--weight", "1"), "there is no service 'none'"),
        (("service", "add", "w", "--port", "80", "--flag", "red"), "flags[0] 'red' must be one of"),
        (("drain", "none"), "there is no service 'none'"),
    ],
)
def test_what_fusisd_refuses_is_one_line_and_status_1(ctl: Ctl, words: tuple[str, ...], said: str) -> None:
    status, printed, error = ctl(*words)
    assert (status, printed, error.count("\n")) == (1, "", 1)
    assert error.startswith("fusisctl: ")
    assert said in error


@pytest.mark.parametrize(
    "words",
    [
        ("drain", "web/"),
        ("drain", "web/a/b"),
        ("destination", "add", "web"),
        ("pause", "soon"),
        ("pause", "nan"),
        ("service", "edit", "web", "--check", "{"),
        ("service", "add", "web", "--tunnel", "gue"),
        ("drain", "web", "--lim", "3"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(ctl: Ctl, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        ctl(*words)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "words", [("service", "edit", "web", "--unset", "x"), ("service", "delete", "web", "--now", "--drain", "3")]
)
def test_what_contradicts_itself_is_wrong_usage_too(web: Ctl, words: tuple[str, ...]) -> None:
    assert web(*words)[0] == 2


def test_every_command_has_help_with_an_example(ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[tuple[str, ...]] = [(name,) for name in ONE_WORD]
    commands += [("service", verb) for verb in ("list", "show", "add", "edit", "delete")]
    commands += [("destination", verb) for verb in ("add", "edit", "delete")]
    for words in commands:
        with pytest.raises(SystemExit) as ended:
            ctl(*words, "--help")
        said: Any = capsys.readouterr().out
        assert ended.value.code == 0
        assert f"example:\n  fusisctl {' '.join(words)}" in said
        assert "--json" in said


ONE_WORD = ("status", "services", "join-command", "why", "drain", "undrain", "drains", "adopt", "release", "pause")
ONE_WORD += ("plan", "apply", "settings", "export", "import", "events", "withdraw")
