"""The command `pyipvs` on a FakeKernel: every command, every way it fails, and the live screen on a pty."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import pty
import re
import select
import shlex
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from pyipvs import (
    IPVS,
    Connection,
    Daemon,
    DaemonNotFound,
    Destination,
    Protocol,
    Ruleset,
    Sample,
    Service,
    ServiceFlags,
    ServiceKey,
    Stats,
    cli,
    diff,
    procfs,
    report,
    top,
    wire,
)
from pyipvs.const import Command
from pyipvs.testing import FakeKernel
from pyipvs.watch import samples

ROOT = Path(__file__).parents[2]
WEB, DNS = "tcp/10.0.0.1:80", "udp/[fd00::1]:53"
KEY, MARK, MARK6 = ServiceKey.parse(WEB), ServiceKey.fwmark(7), ServiceKey.parse("fwmark6/7")
SAVED = """\
-A -t 10.0.0.1:80 -s wrr -p 300
-a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m -w 5
-a -t 10.0.0.1:80 -r 10.0.0.10:80 -m -w 1
-A -u [fd00::1]:53 -s rr -o
"""


class Desk:
    """One table, and the command that works on it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.kernel = FakeKernel()
        self.ipvs = IPVS(transport=self.kernel)
        self._capsys = capsys
        self.names: list[str | None] = []

    def opened(self, netns: str | None) -> IPVS:
        self.names.append(netns)
        return IPVS(transport=self.kernel)

    def run(self, line: str, status: int = 0) -> str:
        """What a command line wrote to stdout, or to stderr when it fails."""
        assert cli.main(shlex.split(line), self.opened) == status, self._capsys.readouterr()
        out, err = self._capsys.readouterr()
        assert bool(err) == (status == 2 or (status == 1 and not out)), (out, err)
        return err or out

    def fill(self) -> None:
        self.ipvs.apply(diff(Ruleset(), Ruleset.parse(SAVED)))

    def text(self) -> str:
        return self.ipvs.snapshot(statistics=False).text()


@pytest.fixture
def desk(capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(capsys)


@pytest.fixture
def full(desk: Desk) -> Desk:
    desk.fill()
    counters = {"connections": 7, "packets_in": 12345678901, "bytes_out": 2**40, "bytes_in_per_s": 99}
    desk.kernel.traffic(WEB, "10.0.0.2:8080", active=3, inactive=11, **counters)
    return desk


def test_list_has_the_columns_of_ipvsadm(full: Desk) -> None:
    assert full.run("list") == (
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "Prot LocalAddress:Port   Scheduler Flags\n"
        "  -> RemoteAddress:Port  Forward  Weight  ActiveConn  InActConn\n"
        "TCP  10.0.0.1:80         wrr persistent 300\n"
        "  -> 10.0.0.2:8080       Masq          5           3         11\n"
        "  -> 10.0.0.10:80        Masq          1           0          0\n"
        "UDP  [fd00::1]:53        rr ops\n"
    )


def test_statistics_are_exact(full: Desk) -> None:
    lines = [line.split() for line in full.run("list --stats -n").splitlines()[1:]]
    assert lines[0][2:] == ["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"]
    assert lines[2] == ["TCP", "10.0.0.1:80", "7", "12345678901", "0", "0", "1099511627776"]
    assert lines[3] == ["->", "10.0.0.2:8080", "7", "12345678901", "0", "0", "1099511627776"]
    rates = [line.split() for line in full.run("list --rate").splitlines()[1:]]
    assert rates[0][2:] == ["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"]
    assert rates[2] == ["TCP", "10.0.0.1:80", "0", "0", "0", "99", "0"]


def test_one_service_is_listed_without_the_heading(full: Desk) -> None:
    lines = full.run(f"list {DNS}").splitlines()
    assert [line.split()[0] for line in lines] == ["Prot", "->", "UDP"]


def test_columns_are_as_wide_as_what_is_in_them(full: Desk) -> None:
    lines = full.run("list --stats").splitlines()[1:]
    assert len({len(line) for line in lines if "->" not in line or "Remote" not in line}) == 1


@pytest.mark.parametrize(
    ("service", "shown"),
    [
        (Service(MARK, "sh", ServiceFlags.SCHED1), "FWM  7  sh (sh-fallback)"),
        (Service(MARK6, "rr", persistence_s=9, netmask=64), "FWM  7 IPv6  rr persistent 9 mask 64"),
        (Service(MARK, "rr", persistence_s=9, netmask=20), "FWM  7  rr persistent 9 mask 255.255.240.0"),
        (Service(MARK, "rr", ServiceFlags.SCHED3, 9, None, "sip"), "FWM  7  rr (flag-3) persistent 9 pe sip"),
    ],
)
def test_settings_are_written_as_by_ipvsadm(desk: Desk, service: Service, shown: str) -> None:
    desk.ipvs.add_service(service)
    assert desk.run("list").splitlines()[-1].split() == shown.split()


def test_json_has_every_field(full: Desk) -> None:
    gue = "--method tunnel --tunnel-type gue --tunnel-port 6080 --tunnel-flags csum,remcsum"
    full.run(f"add destination {WEB} [fd00::9]:80 {gue}")
    table = json.loads(full.run("list --json"))
    assert (table["version"], table["connection_table_size"]) == ("1.2.1", 4096)
    web = table["services"][0]
    key_fields = {"key", "protocol", "address", "port", "mark", "family"}
    configured = {field.name for field in fields(Service)}
    assert set(web) == key_fields | configured | {"stats", "destinations"}
    assert web["protocol"], web["persistence_s"] == ("tcp", 300)
    assert set(web["stats"]) == set(Stats._fields)
    first = web["destinations"][0]
    observed = {"active", "inactive", "persistent", "stats"}
    assert set(first) == {field.name for field in fields(Destination)} - {"packed"} | observed
    assert (first["method"], first["active"], first["stats"]["packets_in"]) == ("nat", 3, 12345678901)
    assert web["destinations"][2]["tunnel"] == {"type": "gue", "port": 6080, "flags": 3}
    assert table["services"][1]["flags"] == ["one_packet"]
    assert [one["key"] for one in json.loads(full.run(f"list --json --stats {DNS}"))["services"]] == [DNS]


def test_an_empty_table_is_listed(desk: Desk) -> None:
    assert len(desk.run("list").splitlines()) == 3
    assert json.loads(desk.run("list --json"))["services"] == []


CONNECTIONS = """\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A000009 9C40 0A000001 0050 0A000002 1F90 ESTABLISHED     898
UDP 0A000009 13C4 0A000001 13C4 0A000003 13C4 UDP             300 sip \x1b[2Jcall
IP  0A000009 0000 00000007 0000 0A000002 0000 NONE             59
"""


@pytest.fixture
def connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "conn").write_text(CONNECTIONS)
    monkeypatch.setattr(procfs, "CONNECTIONS", tmp_path / "conn")
    yield


@pytest.mark.usefixtures("connections")
def test_connections(desk: Desk) -> None:
    lines = desk.run("list --connections").splitlines()
    assert lines[0] == "IPVS connection entries"
    assert lines[1].split() == ["pro", "expire", "state", "source", "virtual", "destination"]
    assert lines[2].split() == ["TCP", "14:58", "ESTABLISHED", "10.0.0.9:40000", "10.0.0.1:80", "10.0.0.2:8080"]
    assert lines[3].endswith("10.0.0.3:5060  sip \\x1b[2Jcall")
    assert lines[4].startswith("IP   00:59 ")
    assert desk.names == []  # it needs no handle


@pytest.mark.usefixtures("connections")
def test_connections_of_one_service_and_as_json(desk: Desk) -> None:
    assert len(desk.run(f"list --connections {WEB}").splitlines()) == 3
    (one,) = json.loads(desk.run("list --connections --json udp/10.0.0.1:0"))
    assert set(one) == {field.name for field in fields(Connection)}
    assert (one["protocol"], one["virtual_port"], one["persistence_engine"]) == ("udp", 5060, "sip")
    assert "firewall mark" in desk.run("list --connections fwmark/7", 2)


def test_connections_without_the_module(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "CONNECTIONS", tmp_path / "none")
    assert "modprobe ip_vs" in desk.run("list --connections", 1)
    (tmp_path / "none").write_text("nonsense\n")
    assert "no heading" in desk.run("list --connections", 1)  # a DecodeError is no wrong usage


def test_save_and_restore(full: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert full.run("save") == SAVED == full.run("save -")
    assert full.run(f"save {tmp_path}/table") == ""
    assert (tmp_path / "table").read_text() == SAVED
    full.ipvs.flush()
    assert full.run(f"restore {tmp_path}/table") == ""
    assert full.text() == SAVED
    full.ipvs.flush()
    monkeypatch.setattr(sys, "stdin", io.StringIO(SAVED))
    full.run("restore -")
    assert full.text() == SAVED


def test_save_leaves_a_file_as_it_was_or_makes_it_whole(
    full: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, link = tmp_path / "table", tmp_path / "link"
    table.write_text("the old one")
    table.chmod(0o640)
    link.symlink_to(table)

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        assert full.run(f"save {link}", 1) == f"pyipvs: {link}: No space left on device\n"
    assert table.read_text() == "the old one"
    full.run(f"save {link}")
    assert (table.read_text(), stat.S_IMODE(table.stat().st_mode), link.is_symlink()) == (SAVED, 0o640, True)
    assert {path.name for path in tmp_path.iterdir()} == {"table", "link"}
    full.run("save /dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_exists_already_is_told_line_by_line(full: Desk, tmp_path: Path) -> None:
    (tmp_path / "table").write_text(SAVED + "-A -f 7 -s rr\n")
    lines = full.run(f"restore {tmp_path}/table", 1).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("pyipvs: ") for line in lines)
    assert lines[0] == f"pyipvs: add service {WEB}: exists already (EEXIST)"
    assert lines[4] == "pyipvs: 4 of 5 changes failed; the others are done"
    assert full.text() == SAVED + "-A -f 7 -s rr\n"


WANTED = """\
-A -t 10.0.0.1:80 -s rr -p 300
-a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m -w 0 -x 9 -y 5
-a -t 10.0.0.1:80 -r 10.0.0.3:80 -m -w 1
-A -f 7 -s wlc
"""
PLANNED = [
    "+ service fwmark/7 (wlc)",
    f"~ service {WEB} (scheduler wrr -> rr)",
    f"+ destination 10.0.0.3:80 to {WEB} (nat, weight 1)",
    f"~ destination 10.0.0.2:8080 of {WEB} (weight 5 -> 0, upper_threshold 0 -> 9, lower_threshold 0 -> 5)",
    f"- destination 10.0.0.10:80 of {WEB}",
    f"- service {DNS} (0 destinations)",
]


@pytest.fixture
def wanted(tmp_path: Path) -> Path:
    path = tmp_path / "wanted"
    path.write_text(WANTED)
    return path


def test_plan_says_what_apply_would_do(full: Desk, wanted: Path) -> None:
    assert sorted(full.run(f"plan {wanted}", 1).splitlines()) == sorted(PLANNED)
    assert full.text() == SAVED
    wanted.write_text(SAVED)
    assert full.run(f"plan {wanted}") == ""


def test_plan_names_tunnels_and_flags(desk: Desk, wanted: Path) -> None:
    desk.ipvs.add_service("fwmark/7", scheduler="rr")
    desk.ipvs.add_destination("fwmark/7", "10.0.0.2:80", method="tunnel")
    wanted.write_text("-A -f 7 -s rr -o\n-a -f 7 -r 10.0.0.2:80 -m\n")
    lines = desk.run(f"plan {wanted}", 1).splitlines()
    assert lines[0] == "~ service fwmark/7 (flags none -> one_packet)"
    assert lines[1] == "~ destination 10.0.0.2:80 of fwmark/7 (method tunnel -> nat, tunnel type ipip -> none)"


def test_plan_fails_with_the_status_of_trouble(full: Desk, wanted: Path) -> None:
    full.kernel.fail_next(errno.EPERM)
    assert "CAP_NET_ADMIN" in full.run(f"plan {wanted}", 2)
    full.run("plan /nosuch", 2)


def test_apply_makes_the_table_equal(full: Desk, wanted: Path) -> None:
    assert full.run(f"apply {wanted} --yes") == "applied 6 changes, deleting 1 service with 0 destinations and 1 more\n"
    assert full.ipvs.snapshot() == Ruleset.parse(WANTED)
    assert full.run(f"apply {wanted} --yes") == "nothing to change\n"


def test_apply_needs_yes_without_a_terminal(full: Desk, wanted: Path) -> None:
    assert full.run(f"apply {wanted}", 2) == (
        "pyipvs: apply deletes what the file does not have: without a terminal to ask on, give --yes\n"
    )
    full.run("flush", 2)
    assert full.text() == SAVED


def test_apply_tells_what_the_kernel_refused(full: Desk, wanted: Path) -> None:
    wanted.write_text("-A -t 10.0.0.1:80 -s nosuch\n")
    assert "no such scheduler" in full.run(f"apply {wanted} --yes", 1)


class Terminal(io.StringIO):
    """A terminal where this is typed."""

    def isatty(self) -> bool:
        return True


def ask(desk: Desk, monkeypatch: pytest.MonkeyPatch, line: str, typed: str) -> tuple[int, str]:
    """The exit status, and what was asked, of a command at a terminal."""
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys, "stderr", asked := Terminal())
    return cli.main(shlex.split(line), desk.opened), asked.getvalue()


@pytest.mark.parametrize("answer", ["", "n\n", "\n", "yellow\n"])
def test_apply_asks_and_takes_no_for_an_answer(
    full: Desk, wanted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    status, asked = ask(full, monkeypatch, f"apply {wanted}", answer)
    question = "6 changes, deleting 1 service with 0 destinations and 1 more: apply? [y/N] "
    assert (status, asked) == (1, f"{question}pyipvs: nothing was changed\n")
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(PLANNED)
    assert full.text() == SAVED


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_apply_asks_and_does_it(full: Desk, wanted: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    status, _ = ask(full, monkeypatch, f"apply {wanted}", answer)
    assert status == 0
    assert full.ipvs.snapshot() == Ruleset.parse(WANTED)
    assert ask(full, monkeypatch, f"apply {wanted}", "") == (0, "")  # nothing to change: nothing to ask
    assert ask(full, monkeypatch, "apply -", SAVED)[0] == 2  # stdin cannot be the file and the answer


def test_flush_asks(full: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(full, monkeypatch, "flush", "n\n") == (1, "Remove 2 services? [y/N] pyipvs: nothing was changed\n")
    assert full.text() == SAVED
    assert ask(full, monkeypatch, "flush", "y\n")[0] == 0
    assert full.text() == ""


@pytest.mark.parametrize(
    ("deleted", "text"),
    [
        ("-A -t 10.0.0.1:80 -s wrr -p 300\n-A -u [fd00::1]:53 -s rr -o\n", "2 changes, deleting 2 destinations"),
        (SAVED + "-A -f 7 -s rr\n", "1 change, deleting nothing"),
        ("-A -u [fd00::1]:53 -s rr -o\n", "1 change, deleting 1 service with 2 destinations"),
    ],
)
def test_apply_counts_what_it_deletes(full: Desk, wanted: Path, deleted: str, text: str) -> None:
    wanted.write_text(deleted)
    assert full.run(f"apply {wanted} --yes") == f"applied {text}\n"


def test_a_large_restore_shows_its_progress_on_a_terminal(desk: Desk, wanted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted.write_text("".join(f"-A -f {mark} -s rr\n" for mark in range(1, 2501)))
    status, told = ask(desk, monkeypatch, f"restore {wanted}", "")
    assert (status, told) == (0, "\r1000 of 2500 changes\r2000 of 2500 changes\r2500 of 2500 changes\r\x1b[K")
    assert len(desk.ipvs.services()) == 2500
    desk.ipvs.flush()
    desk.run(f"restore {wanted}")  # which looks that nothing is told elsewhere


def test_services(desk: Desk) -> None:
    desk.run(f"add service {WEB} --scheduler sh --persistent 300 --netmask 24 --flags sh-port,flag-3")
    assert desk.text() == "-A -t 10.0.0.1:80 -s sh -p 300 -M 255.255.255.0 -b sh-port,flag-3\n"
    desk.run(f"edit service {WEB} --scheduler rr --flags none")
    assert desk.text() == "-A -t 10.0.0.1:80 -s rr -p 300 -M 255.255.255.0\n"
    desk.run(f"edit service {WEB} --persistent 0 --engine sip")
    assert desk.ipvs.service(WEB).service == Service(KEY, "rr", netmask=24, persistence_engine="sip")
    desk.run(f"edit service {WEB} --engine none --netmask 32")
    assert desk.text() == "-A -t 10.0.0.1:80 -s rr\n"
    desk.run(f"delete service {WEB}")
    assert desk.text() == ""


def test_destinations(desk: Desk) -> None:
    desk.run("add service fwmark/7 --scheduler rr")
    at = "fwmark/7 10.0.0.2:80"

    def settings() -> str:
        return desk.text().partition("-r 10.0.0.2:80 ")[2].strip()

    desk.run(f"add destination {at} --weight 3 --upper 9 --lower 5")
    assert settings() == "-m -w 3 -x 9 -y 5"
    desk.run(f"edit destination {at} --weight 0")
    assert settings() == "-m -w 0 -x 9 -y 5"
    desk.run(f"edit destination {at} --method tunnel --tunnel-type gue --tunnel-port 6080 --upper 0 --lower 0")
    assert settings() == "-i -w 0 --tun-type gue --tun-port 6080 --tun-nocsum"
    desk.run(f"edit destination {at} --tunnel-flags csum")
    assert settings() == "-i -w 0 --tun-type gue --tun-port 6080 --tun-csum"
    desk.run(f"edit destination {at} --tunnel-type gre")
    assert settings() == "-i -w 0 --tun-type gre --tun-csum"
    desk.run(f"edit destination {at} --method route")
    assert settings() == "-g -w 0"
    desk.run(f"delete destination {at}")
    assert settings() == ""


def test_timeouts(desk: Desk) -> None:
    desk.run("timeouts --tcp 90 --udp 7")
    assert desk.run("timeouts") == "tcp 90\ntcp-fin 120\nudp 7\n"


def test_zero_flush_info(full: Desk) -> None:
    full.run(f"zero {WEB}")
    assert full.ipvs.service(WEB).stats == Stats()
    full.run("zero")
    assert full.run("info") == "version = 1.2.1\nconnection_table_size = 4096\n"
    full.run("flush --yes")
    assert full.text() == ""


class WithDaemons(IPVS):
    """FakeKernel has no daemons; these are kept here."""

    running: list[Daemon] = []

    def daemons(self) -> list[Daemon]:
        return self.running

    def start_daemon(self, daemon: Daemon) -> None:
        self.running.append(daemon)

    def stop_daemon(self, state: object) -> None:
        found = [daemon for daemon in self.running if str(daemon.state) == state]
        if not found:
            raise DaemonNotFound("stop sync daemon", errno.ESRCH, str(state))
        self.running.remove(found[0])


def test_daemons(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "opened", lambda netns: WithDaemons(transport=desk.kernel))
    desk.run("daemon start master --interface eth0 --sync-id 7 --group 224.0.0.99 --port 8900 --ttl 2 --max-length 1400")
    desk.run("daemon start backup --interface eth1")
    lines = [line.split() for line in desk.run("daemon list").splitlines()]
    assert lines == [
        ["STATE", "INTERFACE", "SYNC-ID", "MAX-LENGTH", "GROUP", "PORT", "TTL"],
        ["master", "eth0", "7", "1400", "224.0.0.99", "8900", "2"],
        ["backup", "eth1", "0", "-", "-", "-", "-"],
    ]
    desk.run("daemon stop master")
    assert "ESRCH" in desk.run("daemon stop master", 1)
    assert len(desk.run("daemon list").splitlines()) == 2


def test_sysctls(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "SYSCTLS", tmp_path)
    (tmp_path / "conntrack").write_text("0\n")
    (tmp_path / "sync_threshold").write_text("3\t50\n")
    assert desk.run("sysctl") == "conntrack = 0\nsync_threshold = 3 50\n"
    assert desk.run("sysctl sync_threshold") == "sync_threshold = 3 50\n"
    assert desk.run("sysctl conntrack 1") == ""
    assert desk.run("sysctl conntrack") == "conntrack = 1\n"
    assert "it has conntrack" in desk.run("sysctl contrack", 2)


def test_the_network_namespace_is_named_before_or_after_the_command(desk: Desk) -> None:
    desk.run("--netns lb1 list")
    desk.run("list --netns /run/netns/lb2")
    desk.run("--netns lb1 add service fwmark/7 --netns lb3")
    desk.run("info")
    assert desk.names == ["lb1", "/run/netns/lb2", "lb3", None]


def test_files_of_another_namespace_are_read_in_it(desk: Desk) -> None:
    assert "/run/netns/nosuch" in desk.run("--netns nosuch sysctl", 1)
    assert "/nosuch/one" in desk.run("list --connections --netns /nosuch/one", 1)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "required: COMMAND"),
        ("nosuch", "invalid choice: 'nosuch'"),
        ("add", "required: COMMAND"),
        ("list --nosuch", "unrecognized arguments: --nosuch"),
        ("list --stats --rate", "not allowed with"),
        ("list --stat", "unrecognized arguments"),  # an abbreviation may mean another option tomorrow
        ("list 10.0.0.1", "'10.0.0.1' is not ADDRESS:PORT"),
        ("list fwmark/x", "must be a whole number"),
        ("add service tcp/10.0.0.1:0", "port 0 (all ports) needs persistence_s"),
        ("add service tcp/10.0.0.1:80 --netmask 33", "netmask"),
        ("add service tcp/10.0.0.1:80 --flags odd", "'odd' must be one of ops, flag-1"),
        ("add service tcp/10.0.0.1:80 --persistent x", "--persistent: invalid int value: 'x'"),
        ("edit service tcp/10.0.0.1:80", "name what to change"),
        ("add destination fwmark/7 10.0.0.2", "is not ADDRESS:PORT"),
        ("add destination fwmark/7 10.0.0.2:80 --weight -1", "weight -1"),
        ("add destination fwmark/7 10.0.0.2:80 --lower 1", "lower_threshold 1"),
        ("add destination fwmark/7 10.0.0.2:80 --method local", "invalid choice: 'local'"),
        ("add destination fwmark/7 10.0.0.2:80 --tunnel-type gre", "for method tunnel"),
        ("add destination fwmark/7 10.0.0.2:80 --method tunnel --tunnel-type gue", "gue needs a tunnel port"),
        ("add destination fwmark/7 10.0.0.2:80 --tunnel-flags odd", "'odd' must be one of none, csum, remcsum"),
        ("add destination tcp/10.0.0.1:80 10.0.0.2:81 --method route", "keeps the service's 80"),
        ("edit destination fwmark/7 10.0.0.2:80", "name what to change"),
        ("timeouts --tcp 0", "'0' must be a whole number from 1"),
        ("timeouts --tcp 9999999999", "tcp_s"),
        ("daemon start odd --interface eth0", "invalid choice: 'odd'"),
        ("daemon start master", "required: --interface"),
        ("daemon start master --interface eth0 --group 10.0.0.1", "not a multicast address"),
        ("daemon start master --interface eth0 --sync-id 256", "from 0 to 255"),
        ("top --interval 0", "from 0.1 to 86400"),
        ("top --interval nan", "from 0.1 to 86400"),
        ("top --interval x", "must be from 0.1"),
        ("top --sort odd", "invalid choice: 'odd'"),
        ("top --count 0", "from 1"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(desk: Desk, line: str, told: str) -> None:
    text = desk.run(line, 2)
    assert text.startswith("pyipvs: ")
    assert told in text
    assert text.count("\n") == 1
    assert desk.text() == ""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("list tcp/10.0.0.9:80", "get service tcp/10.0.0.9:80: no such service (ESRCH)"),
        (f"add service {WEB}", "exists already"),
        ("add service fwmark/7 --scheduler nosuch", "no such scheduler"),
        ("edit service fwmark/7 --scheduler rr", "no such service"),
        ("delete service fwmark/7", "no such service"),
        ("add destination fwmark/7 10.0.0.2:80", "no such service"),
        (f"add destination {WEB} 10.0.0.10:80", "exists already"),
        (f"edit destination {WEB} 10.0.0.9:80 --weight 0", "no such destination"),
        (f"edit destination {WEB} 10.0.0.9:80 --tunnel-type gre", "no such destination"),
        (f"delete destination {WEB} 10.0.0.9:80", "no such destination"),
        ("zero fwmark/7", "no such service"),
        ("daemon list", "Operation not supported"),
        ("restore /nosuch", "/nosuch: No such file or directory"),
        ("apply /nosuch --yes", "/nosuch: No such file or directory"),
        ("save /nosuch/file", "/nosuch/file: No such file or directory"),
    ],
)
def test_what_failed_is_one_line_and_status_1(full: Desk, line: str, told: str) -> None:
    text = full.run(line, 1)
    assert text.startswith("pyipvs: ")
    assert told in text
    assert text.count("\n") == 1
    assert full.text() == SAVED


@pytest.mark.parametrize("command", ["restore", "plan", "apply --yes"])
def test_a_file_that_is_no_saved_table_is_wrong_usage(full: Desk, tmp_path: Path, command: str) -> None:
    path = tmp_path / "file"
    path.write_text("-A -t 10.0.0.1:80\n-Q\n")
    assert full.run(f"{command} {path}", 2).startswith("pyipvs: line 2: -Q is not in a saved table")
    path.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in full.run(f"{command} {path}", 2)
    assert full.text() == SAVED


def test_ctrl_c_is_status_130(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(netns: str | None) -> IPVS:
        raise KeyboardInterrupt

    monkeypatch.setattr(desk, "opened", interrupted)
    assert cli.main(["list"], interrupted) == 130


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


EVERY = {parser.prog: parser for parser in parsers(cli._parser())}


@pytest.mark.parametrize("prog", EVERY)
def test_every_help_has_examples_that_are_right(desk: Desk, prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*prog.split()[1:], "--help"], desk.opened)
    assert ended.value.code == 0
    examples = re.findall(r"^  .*(pyipvs [^|\n]*)", capsys.readouterr().out.partition("examples:\n")[2], re.MULTILINE)
    examples += re.findall(r"^  (pyipvs [^|\n]*)", EVERY[prog].format_help().partition("examples:\n")[2], re.MULTILINE)
    assert examples
    for example in examples:
        if "--help" not in example:
            assert cli._parser().parse_args(shlex.split(example)[1:]).run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("pyipvs ")


SCRIPT = f"""
import sys
from pyipvs import IPVS, Ruleset, cli, diff
from pyipvs.testing import FakeKernel
kernel = FakeKernel()
text = {SAVED!r} + "".join(f"-A -f {{mark}} -s rr\\n" for mark in range(1, int(sys.argv[1])))
IPVS(transport=kernel).apply(diff(Ruleset(), Ruleset.parse(text)))
kernel.traffic({WEB!r}, "10.0.0.2:8080", active=3, inactive=11)
sys.exit(cli.main(sys.argv[2:], lambda netns: IPVS(transport=kernel)))
"""


def program(*words: str, marks: int = 1) -> list[str]:
    """The command line of a pyipvs with a table of its own."""
    return [sys.executable, "-c", SCRIPT, str(marks), *words]


@pytest.mark.parametrize("words", [("list",), ("top", "--interval", "0.1")])
def test_a_reader_that_goes_is_no_error(words: tuple[str, ...]) -> None:
    with subprocess.Popen(program(*words, marks=4000), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.readline()
        running.stdout.close()
        assert running.wait(60) == 141
        assert running.stderr.read() == b""


def test_without_ipvs_the_module_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyipvs", "--netns", "nosuch", "list"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("pyipvs: ")
    assert done.stderr.count("\n") == 1


def test_top_writes_every_interval_without_a_terminal(full: Desk) -> None:
    tables = full.run("top --interval 0.1 --count 2").strip().split("\n\n")
    assert len(tables) == 2
    for table in tables:
        lines = table.splitlines()
        assert lines[0].startswith("pyipvs top: 2 services, 2 destinations, by conns, over 0.")
        rows = [line.split() for line in lines[2:]]
        assert [row[0] for row in rows] == [WEB, "10.0.0.2:8080", "10.0.0.10:80", DNS]
        assert rows[0][1:] == ["wrr", "6", "3", "11", *["0.0"] * 5]


def test_top_tells_what_failed(full: Desk) -> None:
    full.kernel.fail_next(errno.EPERM)
    assert "CAP_NET_ADMIN" in full.run("top", 1)


def test_top_ends_by_ctrl_c_with_status_0() -> None:
    with subprocess.Popen(program("top", "--interval", "0.1"), cwd=ROOT, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0


def sample(*, rates: bool = True, services: int = 1) -> Sample:
    """Two readings: destination 2 has the most connections, 1 the most bytes, 3 the most packets."""
    kernel = FakeKernel()
    ipvs = IPVS(transport=kernel)
    for number in range(services):
        key = f"tcp/10.0.{number}.1:80"
        ipvs.add_service(key, scheduler="rr")
        for host, weight in ((1, 1), (2, 9), (3, 5)):
            ipvs.add_destination(key, f"10.9.9.{host}:80", weight=weight)
    clock = iter((0.0, 0.0, 2.0))
    found = samples(ipvs.snapshot, 2.0, lambda: next(clock), lambda _: None)
    first = next(found)
    if not rates:
        return first
    last = f"tcp/10.0.{services - 1}.1:80"
    kernel.traffic(last, "10.9.9.1:80", active=2, bytes_in=4_000_000_000)
    kernel.traffic(last, "10.9.9.2:80", active=1, connections=400)
    kernel.traffic(last, "10.9.9.3:80", active=3, packets_out=20)
    return next(found)


@pytest.mark.parametrize(
    ("sort", "order"),
    [("conns", "213"), ("bytes", "123"), ("packets", "312"), ("active", "312"), ("weight", "231"), ("name", "123")],
)
def test_top_sorts(sort: str, order: str) -> None:
    rows = [line.split()[0] for line in top.text(sample(services=2), sort)[2:]]
    busy = "tcp/10.0.1.1:80"
    at = rows.index(busy)
    assert at == (4 if sort in ("name", "weight") else 0)  # all weights are alike
    assert rows[at + 1 : at + 4] == [f"10.9.9.{host}:80" for host in order]


def test_top_shows_rates_in_three_digits_and_none_at_first() -> None:
    lines = [line.split() for line in top.fitted(sample(), "name", 120, 20)]
    assert lines[2] == ["tcp/10.0.0.1:80", "rr", "15", "6", "0", "200", "2G", "0", "0", "10"]
    assert lines[3][-5:] == ["0", "2G", "0", "0", "0"]
    assert [line.split()[-5:] for line in top.fitted(sample(rates=False), "conns", 120, 20)[2:-1]] == [["-"] * 5] * 4


@pytest.mark.parametrize("width", [1, 5, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 20])
def test_top_fits_the_screen(width: int, height: int) -> None:
    lines = top.fitted(sample(services=3), "conns", width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    if width >= 80 and height == 8:
        assert lines[-2] == "... and 8 more"[: len(lines[-2])]


def test_a_column_that_does_not_fit_is_left_out_whole() -> None:
    assert [line.split()[-1] for line in top.fitted(sample(), "name", 56, 20)[1:3]] == ["CONNS/s", "200"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0"), (9.57, "9.6"), (99.96, "100"), (999.4, "999"), (999.6, "1.0k"), (1.2e6, "1.2M"), (1e15, "1000T")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert top.short(value) == text


def test_a_changed_table_is_told() -> None:
    changed = sample()._replace(changes=diff(Ruleset(), Ruleset.parse(SAVED)))
    assert "table changed: 4" in top.text(changed, "name")[0]


class Pty:
    """pyipvs at a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self.seen = ""
        self._ours, self._its = pty.openpty()
        self.resize(12, 100)
        self.mode = termios.tcgetattr(self._its)
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=self._its, stdout=self._its, stderr=subprocess.PIPE, start_new_session=True
        )

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._its, (rows, columns))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, wanted: Callable[[str], bool]) -> str:
        """Everything that it wrote meanwhile."""
        self.seen, until_s = "", time.monotonic() + 60
        while not wanted(self.seen):
            assert time.monotonic() < until_s, self.seen
            if select.select([self._ours], [], [], 0.1)[0]:
                self.seen += os.read(self._ours, 65536).decode()
        return self.seen

    def end(self) -> int:
        """The exit status; the terminal is as it was."""
        status = self.process.wait(60)
        assert self.process.stderr
        with self.process.stderr as told:
            assert told.read() == b""
        assert termios.tcgetattr(self._its) == self.mode
        rest = ""
        while select.select([self._ours], [], [], 0)[0]:
            rest += os.read(self._ours, 65536).decode()
        os.close(self._ours)
        os.close(self._its)
        assert (self.seen + rest).endswith("\x1b[?25h\x1b[?1049l")
        return status


def test_top_on_a_terminal_redraws_sorts_by_key_and_ends_by_q() -> None:
    terminal = Pty(program("top", "--interval", "30"))
    text = terminal.until(lambda seen: "keys: q quit" in seen)
    assert text.startswith("\x1b[?1049h\x1b[?25l\x1b[H")
    assert "by conns" in text
    for key, name in zip("bpawnc", ("bytes", "packets", "active", "weight", "name", "conns"), strict=True):
        terminal.type(key)
        terminal.until(lambda seen, name=name: f"by {name}" in seen and seen.endswith("\x1b[J"))  # type: ignore[misc]
    terminal.resize(3, 40)
    terminal.until(lambda seen: seen.endswith("\x1b[J") and seen.count("\n") == 2)
    terminal.type("\x1a?x")  # Ctrl-Z and keys that mean nothing
    terminal.until(lambda seen: seen.endswith("\x1b[J"))
    terminal.type("q")
    assert terminal.end() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_top_restores_the_terminal_whatever_ends_it(number: int, status: int) -> None:
    terminal = Pty(program("top", "--interval", "30"))
    terminal.until(lambda seen: "keys: q quit" in seen)
    os.kill(terminal.process.pid, number)
    assert terminal.end() == status


def test_top_on_a_terminal_ends_after_so_many_intervals() -> None:
    terminal = Pty(program("top", "--interval", "0.1", "--count", "2"))
    text = terminal.until(lambda seen: "\x1b[?1049l" in seen)
    assert text.count("\x1b[H") == 3
    assert terminal.end() == 0


def test_a_connection_of_a_strange_protocol_is_shown() -> None:
    one = Connection(Protocol.seen(99), "fd00::1", 1, "fd00::2", 2, "fd00::3", 3, "NONE", 6000)
    assert report.connection_lines([one])[1].split() == ["99", "100:00", "NONE", "[fd00::1]:1", "[fd00::2]:2", "[fd00::3]:3"]


def test_a_table_that_ipvsadm_has_no_words_for_cannot_be_saved_which_is_no_wrong_usage(full: Desk) -> None:
    odd = wire.key_values(ServiceKey.parse("tcp/10.0.0.7:80")) | {"protocol": 1, "scheduler": "rr", "flags": (0, 0xFF)}
    odd |= {"persistence_s": 0, "netmask": 0xFFFFFFFF}
    full.kernel.exchange(Command.NEW_SERVICE, wire.pack(wire.COMMAND, {"service": wire.pack(wire.SERVICE, odd)}))
    assert "no option for protocol 1" in full.run("save", 1)
