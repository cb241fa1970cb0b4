"""fusisctl doctor's judgement, and what it says where fusisd never ran; the looks are tested on a real kernel."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fusisd.ctl.__main__ import main
from fusisd.findings import Finding
from fusisd.kernel.doctor import Asked, Facts, examine
from fusisd.kernel.sysctl import Switch
from fusisd.model import Announce, Service
from fusisd.store import sqlite
from pyipvs import ServiceKey

VIP = "10.1.0.100"
HERE = {VIP: frozenset({"eth0"})}
MAC = "02:00:00:00:00:01"


def service(**settings: object) -> Service:
    return Service("web", ServiceKey.parse(f"tcp/{VIP}:80"), **settings)  # type: ignore[arg-type]


def found(check: str, facts: Facts, asked: Asked | None = None) -> Finding:
    asked = asked or Asked("eth0", (service(),), frozenset({4}))
    (finding,) = [finding for finding in examine(asked, facts) if finding.check == check]
    assert finding.ok or finding.mend
    return finding


def test_nothing_is_wrong_where_nothing_is() -> None:
    asked = Asked("eth0", (service(),), frozenset({4, 6}))
    assert all(finding.ok and not finding.mend for finding in examine(asked, Facts(addresses=HERE)))


def test_a_kernel_without_ipvs_is_one_finding_and_not_one_for_each_scheduler() -> None:
    facts = Facts(ipvs="this kernel has none", addresses=HERE)
    assert "modprobe ip_vs" in found("ip_vs", facts).mend
    assert "scheduler" not in {finding.check for finding in examine(Asked("eth0", (service(),)), facts)}


def test_switches_of_one_reason_are_one_finding_with_one_command() -> None:
    switches = tuple(Switch(f"net.ipv4.conf.{name}.send_redirects", "1", "0", "no") for name in ("all", "eth0"))
    noted = Switch("net.ipv4.conf.all.forwarding", "0", None, "disturbed along")
    mend = found("sysctl", Facts(switches=(*switches, noted), addresses=HERE)).mend
    assert mend == "sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0"


VIPS = [
    ("here and nobody else", {}, Facts(addresses=HERE), False, True),
    ("here and somebody else", {}, Facts(addresses=HERE, neighbours={VIP: MAC}), False, False),
    ("somebody else alone", {}, Facts(neighbours={VIP: MAC}), False, False),
    ("nobody", {}, Facts(), False, False),
    ("nobody could be asked", {}, Facts(addresses=HERE, unasked={VIP: "no"}), False, False),
    ("external and elsewhere", {"vip_managed": False}, Facts(neighbours={VIP: MAC}), False, True),
    ("external and nowhere", {"vip_managed": False}, Facts(), False, False),
    ("nothing usable yet", {"announce": Announce.WHEN_USABLE}, Facts(), False, True),
    ("withdrawn and elsewhere", {}, Facts(neighbours={VIP: MAC}), True, True),
    ("withdrawn and nowhere", {}, Facts(), True, True),
]


@pytest.mark.parametrize(("settings", "facts", "withdrawn", "ok"), [row[1:] for row in VIPS], ids=[row[0] for row in VIPS])
def test_one_machine_answers_for_a_vip(settings: dict[str, object], facts: Facts, withdrawn: bool, ok: bool) -> None:
    asked = Asked("eth0", (service(**settings),), withdrawn=withdrawn)
    finding = found("vip", facts, asked)
    assert finding.ok is ok
    assert VIP in finding.seen or facts.unasked


def test_a_firewalls_sentence_is_seen_and_mend() -> None:
    finding = found("forward", Facts(addresses=HERE, forward=("dropped by the policy: iptables -I FORWARD",)))
    assert (finding.ok, finding.seen, finding.mend) == (False, "dropped by the policy", "iptables -I FORWARD")


def said(capsys: pytest.CaptureFixture[str], state_dir: Path) -> dict[str, tuple[bool, str]]:
    status = main(["--socket", str(state_dir / "none.sock"), "doctor", "--json", "--state-dir", str(state_dir)])
    assert status == 1
    findings = json.loads(capsys.readouterr().out)
    return {finding["check"]: (finding["ok"], finding["seen"]) for finding in findings}


def test_before_the_first_start_it_asks_for_the_interface(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checks = said(capsys, tmp_path)
    assert {check for check, (ok, _) in checks.items() if not ok} == {"fusisd", "iface"}
    assert "is it running?" in checks["fusisd"][1]


def test_a_damaged_store_and_a_clock_put_back_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "fusisd.db"
    sqlite.open_database(path).close()
    assert said(capsys, tmp_path)["store"][0]
    path.write_bytes(b"no database" * 1000)
    os.utime(path, (4e9, 4e9))
    before = sorted(tmp_path.iterdir())
    checks = said(capsys, tmp_path)
    assert {check for check, (ok, _) in checks.items() if not ok} == {"fusisd", "iface", "store", "clock"}
    assert str(path) in checks["store"][1]
    assert (sorted(tmp_path.iterdir()), path.read_bytes()[:11]) == (before, b"no database")
