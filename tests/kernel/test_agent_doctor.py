"""fusis-agent doctor names each fault of a server that was broken on purpose, and nothing on one that is well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fusisd.agent import doctor, facts, host, prepare
from fusisd.agent.config import Config, ServiceConfig
from fusisd.agent.prepare import Vip
from fusisd.agent.record import RecordFile
from pyipvs import ForwardingMethod
from tests.lab.backends import backends
from tests.lab.netns import entered
from tests.lab.topology import LB1, VIP, Host, Lab

WEB = ServiceConfig("web", 80, ForwardingMethod.TUNNEL)
SERVICES = {"web": (WEB, Vip(VIP, 80))}


@dataclass(frozen=True)
class Ill:
    """What breaks the server, what mends it, and which check must fail."""

    check: str
    breaks: str
    mends: str


ILLS = [
    Ill("arp", "sysctl -qw net.ipv4.conf.all.arp_ignore=0", "sysctl -qw net.ipv4.conf.all.arp_ignore=1"),
    Ill("arp", f"ip address add {VIP}/32 dev eth0", f"ip address delete {VIP}/32 dev eth0"),
    Ill("rp_filter", "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.fusis-ipip.rp_filter=0",
        "sysctl -qw net.ipv4.conf.fusis-ipip.rp_filter=2"),
    Ill("tunnel", "ip link set fusis-ipip down", "ip link set fusis-ipip up"),
    Ill("mtu", "ip link set eth0 mtu 9000", "ip link set eth0 mtu 1500"),
    Ill("mss", "ip rule delete pref 7946", f"ip rule add pref 7946 from {VIP} lookup 7946"),
    Ill("route-back", "ip route delete default; ip route delete default table 7946",
        "for table in main '7946 advmss 1440'; do ip route add default via 10.1.0.1 table $table; done"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Host]:
    with backends(lab.servers[:1]):
        yield lab.servers[0]


@pytest.fixture(scope="module")
def config(server: Host, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The server prepared."""
    tmp_path = tmp_path_factory.mktemp("doctor")
    file = RecordFile(tmp_path / "host.json", host.machine())

    with entered(server.name):
        steps = prepare.steps(SERVICES.values(), host.place(server.address, LB1.address))
        assert host.Host(file).bring([steps]).problems == ()
    return Config((LB1.address,), tmp_path / "key", {"web": WEB}, state_dir=tmp_path)


def bad(server: Host, config: Config) -> set[str]:
    """The checks that fail (no agent runs here, and that is said, too)."""
    with entered(server.name):
        findings = doctor.examine(SERVICES, facts.look(config, SERVICES))
    assert all(finding.mend for finding in findings if not finding.ok)
    found = {finding.check for finding in findings if not finding.ok}
    assert "serf" in found
    return found - {"serf"}


@pytest.mark.parametrize("ill", ILLS, ids=lambda ill: f"{ill.check}: {ill.breaks}")
def test_a_fault_is_named(server: Host, config: Config, ill: Ill) -> None:
    server.run("sh", "-c", ill.breaks)
    try:
        assert ill.check in bad(server, config)
    finally:
        server.run("sh", "-c", ill.mends)


def test_after_all_these_mends_nothing_is_wrong(server: Host, config: Config) -> None:
    assert bad(server, config) == set()


def test_nothing_listening_is_named(server: Host, config: Config) -> None:
    silent = ServiceConfig("web", 81, ForwardingMethod.TUNNEL)
    with entered(server.name):
        services = {"web": (silent, Vip(VIP, 81))}
        (found,) = [f for f in doctor.examine(services, facts.look(config, services)) if f.check == "listening"]
    assert not found.ok
    assert "refused" in found.seen
