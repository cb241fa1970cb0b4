"""fusisctl doctor names each fault of a balancer that was broken on purpose, and nothing on one that is well.

fusisd is stopped first: a running one would mend most of it within seconds. What it made stays.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusisd.kernel import doctor, facts
from fusisd.model import Service
from pyipvs import ServiceKey
from tests.lab.expect import poll
from tests.lab.fusis import Balancer
from tests.lab.netns import entered
from tests.lab.topology import VIP, Lab


@dataclass(frozen=True)
class Ill:
    """What breaks the balancer (on which host), what mends it, and which check must fail."""

    check: str
    breaks: str
    mends: str
    where: str = "lb1"


ILLS = [
    Ill("sysctl", "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1"),
    Ill("sysctl", "sysctl -qw net.ipv4.vs.conntrack=0", "sysctl -qw net.ipv4.vs.conntrack=1"),
    Ill("vip", f"ip address delete {VIP}/32 dev eth0", f"ip address add {VIP}/32 dev eth0"),
    Ill("vip", f"ip address add {VIP}/32 dev eth0", f"ip address delete {VIP}/32 dev eth0", "rs1"),
    Ill("vip", "ip link set eth0 down", "ip link set eth0 up"),
    Ill("nat", "iptables-legacy -t nat -D POSTROUTING -j FUSIS-MASQ", "iptables-legacy -t nat -A POSTROUTING -j FUSIS-MASQ"),
    Ill("forward", "iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT"),
    Ill("clock", "touch -d tomorrow STATE/fusisd.db", "touch STATE/fusisd.db"),
    Ill("store", "mkdir STATE/kept; mv STATE/fusisd.db* STATE/kept; head -c 9999 /dev/urandom >STATE/fusisd.db",
        "mv STATE/kept/* STATE"),  # fmt: skip
    Ill("serf", "echo '{}' >STATE/serf/agent.json", "rm STATE/serf/agent.json"),
]


@pytest.fixture(scope="module")
def balancer(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """One with a service by NAT, stopped."""
    balancer = Balancer(lab.lb1, tmp_path_factory.mktemp("doctor"), "--serf", "off")
    with balancer:
        balancer.add_service()
        balancer.post("/services/web/destinations",
                      {"Name": "rs1", "Host": lab.servers[0].address, "Port": 80, "Mode": "nat"})  # fmt: skip
        poll(lambda: VIP in balancer.status()["vips"] and ask(balancer) == {"conntrack"}, 60, "all to be well but one")
    (balancer.state_dir / "serf").mkdir()
    yield balancer


def ask(balancer: Balancer) -> set[str]:
    """The checks that fail."""
    words = [sys.executable, "-m", "fusisd.ctl", "--socket", str(balancer.socket)]
    words += ["doctor", "--json", "--iface", "eth0", "--state-dir", str(balancer.state_dir)]
    findings = json.loads(balancer.host.run(*words, check=False))
    assert all(finding["mend"] for finding in findings if not finding["ok"])
    return {finding["check"] for finding in findings if not finding["ok"]}




@pytest.mark.parametrize("ill", ILLS, ids=lambda ill: f"{ill.check}: {ill.breaks}")
def test_a_fault_is_named(lab: Lab, balancer: Balancer, ill: Ill) -> None:
    host = lab.lb1 if ill.where == "lb1" else lab.servers[0]
    host.run("sh", "-c", ill.breaks.replace("STATE", str(balancer.state_dir)))
    try:
        assert ill.check in ask(balancer)
    finally:
        host.run("sh", "-c", ill.mends.replace("STATE", str(balancer.state_dir)))


def test_after_all_these_mends_nothing_is_wrong_but_that_nobody_runs(balancer: Balancer) -> None:
    assert ask(balancer) - {"conntrack"} == {"fusisd"}


def test_a_scheduler_that_the_kernel_has_not_is_named(balancer: Balancer) -> None:
    asked = doctor.Asked("eth0", (Service("dns", ServiceKey.parse("udp/10.1.0.101:53"), "nosuch"),))
    with entered(balancer.host.name):
        findings = doctor.examine(asked, asyncio.run(facts.look(asked)))
    assert [finding.ok for finding in findings if finding.check == "scheduler"] == [False]


def test_without_the_right_to_ask_the_kernel_that_is_named(balancer: Balancer, tmp_path: Path) -> None:
    words = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-m", "fusisd.ctl", "--socket"]
    words += [str(tmp_path / "none"), "doctor", "--json", "--iface", "eth0", "--state-dir", str(balancer.state_dir)]
    findings = json.loads(balancer.host.run(*words, check=False))
    assert [finding["ok"] for finding in findings if finding["check"] == "ip_vs"] == [False]
