"""The host part of the kernel room on real namespaces: addresses, announcements, NAT, sysctls, and undoing it all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from fusisd.kernel import xtables
from fusisd.kernel.cleanup import cleanup
from fusisd.kernel.host import HostPlumbing
from fusisd.kernel.nat import CHAIN
from fusisd.kernel.neighbours import NeighbourError
from fusisd.model import HostSeen, HostWanted, Masquerade
from fusisd.notes import row_text
from fusisd.store.sqlite import SqliteLocal, machine_identity, open_database
from pyipvs import IPVS, Protocol
from tests.lab.netns import entered
from tests.lab.topology import VIP, VIP6, Host, Lab

P = ParamSpec("P")
T = TypeVar("T")
LIMIT_S = 20.0


async def at_once(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """A store's function on the loop: small enough for a test."""
    return function(*args, **kwargs)


@dataclass
class Plumbed:
    """A HostPlumbing at work, what it reported, and its notes."""

    plumbing: HostPlumbing
    local: SqliteLocal
    reports: list[HostSeen]
    wanted: HostWanted = field(default_factory=HostWanted)

    async def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for it, looking every 20 ms; the loop runs on."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not true():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not within {LIMIT_S} s: {what}; last: {self.reports[-1:]}") from None

    async def made(self, wanted: HostWanted) -> HostSeen:
        """Want it, and wait until it is so without failures."""
        self.plumbing.want(wanted)

        def fulfilled() -> bool:
            seen = self.reports[-1] if self.reports else HostSeen(settled=False)
            there = seen.vips | seen.external
            return seen.settled and not seen.failures and (there, seen.masquerades) == (wanted.vips, wanted.masquerades)

        await self.until(fulfilled, f"{wanted}")
        return self.reports[-1]


def notes(path: Path) -> SqliteLocal:
    return SqliteLocal(open_database(path), path, machine_identity())


def plumbed(host: Host, path: Path, scenario: Callable[[Plumbed], Awaitable[None]], sysctls: bool = True) -> None:
    """Run the scenario with a plumbing of the host's eth0; it is stopped afterwards, and what it made stays."""

    async def main() -> None:
        database = open_database(path)
        local = SqliteLocal(database, path, machine_identity())
        reports: list[HostSeen] = []
        plumbing = HostPlumbing("eth0", local, at_once, reports.append, sysctls)
        job = asyncio.create_task(plumbing.run())
        try:
            await scenario(Plumbed(plumbing, local, reports))
        finally:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            database.close()

    with entered(host.name):
        asyncio.run(main())


def addresses(host: Host) -> str:
    return host.run("ip", "-oneline", "address", "show", "dev", "eth0")


@pytest.fixture
def lan() -> Iterator[Lab]:
    """A network of its own for each test: what is made on its hosts is what the test is about."""
    with Lab(servers=1) as built:
        for host in (built.lb1, built.lb2):
            host.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.eth0.accept_dad=0")
        yield built


@pytest.fixture
def bare(netns: Host) -> Host:
    """A host without neighbours, for what needs none; it is built in a tenth of the time."""
    netns.run("ip", "link", "add", "eth0", "type", "dummy")
    netns.run("ip", "link", "set", "eth0", "up")
    netns.run("ip", "address", "add", "10.1.0.2/24", "dev", "eth0")
    return netns


ROW = Masquerade(Protocol.TCP, VIP, 80, "10.1.0.11", 80)
ROW6 = Masquerade(Protocol.TCP, VIP6, 80, "fd00:1::11", 80)
BOTH = HostWanted(frozenset({VIP, VIP6}), frozenset({ROW, ROW6}))


def test_who_answers_for_an_address_on_the_wire_is_known_by_its_mac(lan: Lab, tmp_path: Path) -> None:
    async def scenario(at: Plumbed) -> None:
        for owned in (lan.lb2.address, lan.lb2.address6):
            assert await asked(at, owned) == lan.mac(lan.lb2), owned
        for nobody in (VIP, VIP6):
            assert await asked(at, nobody) == "", nobody
        lan.lb2.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
        lan.lb2.run("ip", "address", "add", f"{VIP6}/128", "dev", "eth0", "nodad", "preferred_lft", "0")
        for taken in (VIP, VIP6):
            assert await asked(at, taken) == lan.mac(lan.lb2), taken
        assert VIP not in lan.lb2.run("ip", "neigh", "show"), "a probe claims nothing"

    async def asked(at: Plumbed, address: str) -> str:
        return await at.plumbing.answers(address)

    plumbed(lan.lb1, tmp_path / "notes", scenario)


def test_for_an_address_of_this_host_nobody_else_answers(lan: Lab, tmp_path: Path) -> None:
    async def scenario(at: Plumbed) -> None:
        await at.made(HostWanted(frozenset({VIP})))
        assert [await at.plumbing.answers(own) for own in (VIP, lan.lb1.address, "127.0.0.1")] == ["", "", ""]
        assert await at.plumbing.own() >= {lan.lb1.address, lan.lb1.address6, "127.0.0.1"}
        assert VIP not in await at.plumbing.own(), "it was put there"
        assert await at.plumbing.own() >= {"10.1.0.0", "10.1.0.255", "fd00:1::"}, "no host's: not to be given away"

    plumbed(lan.lb1, tmp_path / "notes", scenario)


def test_a_real_server_with_the_vip_on_lo_keeps_silent(lan: Lab, tmp_path: Path) -> None:
    (server,) = lan.servers
    server.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")
    server.run("ip", "address", "add", f"{VIP}/32", "dev", "lo")

    async def scenario(at: Plumbed) -> None:
        assert await at.plumbing.answers(VIP) == ""

    plumbed(lan.lb1, tmp_path / "notes", scenario)


def test_the_wire_of_an_interface_that_is_down_cannot_be_asked(lan: Lab, tmp_path: Path) -> None:
    lan.lb1.run("ip", "link", "set", "eth0", "down")

    async def scenario(at: Plumbed) -> None:
        with pytest.raises(NeighbourError, match="eth0"):
            await at.plumbing.answers(VIP)

    plumbed(lan.lb1, tmp_path / "notes", scenario)


def test_a_vip_that_somebody_takes_away_is_put_back_and_announced_again(lan: Lab, tmp_path: Path) -> None:
    async def scenario(at: Plumbed) -> None:
        await at.made(HostWanted(frozenset({VIP, VIP6})))
        assert "deprecated" in lan.lb1.run("ip", "address", "show", "dev", "eth0", "to", VIP6)
        lan.router.run("ip", "neigh", "replace", VIP, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale")
        audits = at.plumbing.counts["address_events"]
        lan.lb1.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
        lan.lb1.run("ip", "address", "delete", f"{VIP6}/128", "dev", "eth0")
        await at.until(lambda: at.plumbing.counts["vips_restored"] == 2, "both noticed")
        assert at.plumbing.counts["address_events"] > audits, "by an event, not by the audit"
        await at.until(lambda: VIP in addresses(lan.lb1) and VIP6 in addresses(lan.lb1), "both back")
        await at.until(lambda: lan.mac(lan.lb1) in lan.router.run("ip", "neigh", "show", VIP), "the router to learn it")

    plumbed(lan.lb1, tmp_path / "notes", scenario)


def test_a_vip_that_comes_and_goes_leaves_no_announcement_behind(lan: Lab, tmp_path: Path) -> None:
    async def scenario(at: Plumbed) -> None:
        announcer = at.plumbing._vips.announcer
        for _ in range(3):
            await at.made(HostWanted(frozenset({VIP, VIP6})))
            assert announcer.pending == {VIP, VIP6}, "repeated for 5 s"
            await at.made(HostWanted())
            assert announcer.pending == frozenset()
        assert VIP not in addresses(lan.lb1)
        assert at.local.owned("vip") == {}
        assert at.plumbing.counts["vips_restored"] == 0

    plumbed(lan.lb1, tmp_path / "notes", scenario)


def test_one_vip_that_cannot_be_made_stops_no_other(bare: Host, tmp_path: Path) -> None:
    bare.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")

    async def scenario(at: Plumbed) -> None:
        at.plumbing.want(HostWanted(frozenset({"10.1.0.101", VIP, VIP6, "10.1.0.102"})))
        await at.until(lambda: len(at.reports[-1:]) > 0 and len(at.reports[-1].vips) == 3, "the IPv4 ones")
        assert list(at.reports[-1].failures) == [f"vip {VIP6}"]
        assert VIP6 not in at.local.owned("vip")

    plumbed(bare, tmp_path / "notes", scenario, sysctls=False)


def test_an_address_of_others_is_external_and_stays(bare: Host, tmp_path: Path) -> None:
    bare.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")

    async def scenario(at: Plumbed) -> None:
        seen = await at.made(HostWanted(frozenset({VIP})))
        assert (seen.vips, seen.external) == (frozenset(), {VIP})
        assert VIP in await at.plumbing.own()
        await at.made(HostWanted())
        assert VIP in addresses(bare)

    plumbed(bare, tmp_path / "notes", scenario)


def nat_rules(host: Host, tool: str = "iptables-legacy") -> list[str]:
    return [line for line in host.run(tool, "-t", "nat", "-S").splitlines() if CHAIN in line]


HANDS = [
    [("-F", CHAIN)],
    [("-D", "POSTROUTING", "-j", CHAIN)],
    [("-D", "POSTROUTING", "-j", CHAIN), ("-F", CHAIN), ("-X", CHAIN)],
    [("-A", CHAIN, "-j", "RETURN")],
]


def test_a_hand_on_our_chain_is_noticed_and_undone(
    bare: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusisd.kernel.host.AUDIT_PERIOD_S", 0.2)

    async def scenario(at: Plumbed) -> None:
        await at.made(HostWanted(frozenset({VIP}), frozenset({ROW})))
        before = nat_rules(bare)
        assert len(before) == 3, before
        for number, hand in enumerate(HANDS):
            audited = len(at.reports)
            await at.until(lambda audited=audited: len(at.reports) >= audited + 2, "audits")
            assert at.plumbing.counts["nat_restored"] == number, "what is as it was is left alone"
            for words in hand:
                bare.run("iptables-legacy", "-t", "nat", *words)
            await at.until(lambda number=number: at.plumbing.counts["nat_restored"] == number + 1, f"{hand}")
            await at.until(lambda: nat_rules(bare) == before, f"the chain after {hand}")

    plumbed(bare, tmp_path / "notes", scenario)


def test_rules_of_released_services_are_kept_beside_those_wanted(bare: Host, tmp_path: Path) -> None:
    async def scenario(at: Plumbed) -> None:
        at.local.claim("nat", {row_text(ROW): ""})
        at.plumbing.want(HostWanted(frozenset(), frozenset({ROW6})))
        await at.until(lambda: at.reports[-1:] != [] and at.reports[-1].masquerades == {ROW, ROW6}, "both")
        at.plumbing.want(HostWanted())
        await at.until(lambda: at.reports[-1].masquerades == {ROW}, "the kept one alone")
        assert len(nat_rules(bare)) == 3
        assert nat_rules(bare, "ip6tables-legacy") == [], "a chain without rules goes"
        at.local.release("nat", [row_text(ROW)])
        at.plumbing.want(HostWanted())
        await at.until(lambda: at.reports[-1].masquerades == frozenset(), "none")
        assert nat_rules(bare) == []

    plumbed(bare, tmp_path / "notes", scenario)


def test_a_closed_forward_chain_is_named_until_it_is_mended(
    bare: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusisd.kernel.host.AUDIT_PERIOD_S", 0.5)
    bare.run("iptables-legacy", "-P", "FORWARD", "DROP")

    async def scenario(at: Plumbed) -> None:
        await at.made(HostWanted(frozenset({VIP}), frozenset({ROW})))

        def warned() -> list[str]:
            return [text for text in at.reports[-1].warnings if "FORWARD" in text]

        await at.until(lambda: warned() != [], "the warning")
        (warning,) = warned()
        mend = warning.rpartition(": ")[2].split()
        assert mend[0] == "iptables-legacy"
        bare.run(*mend)
        await at.until(lambda: warned() == [], "the warning to go")
        bare.run("iptables-legacy", "-F", "FORWARD")
        await at.until(lambda: warned() == [warning], "the same sentence again")
        await at.made(HostWanted(frozenset({VIP})))
        await at.until(lambda: warned() == [], "none without NAT")

    plumbed(bare, tmp_path / "notes", scenario)


def test_switches_shared_with_services_of_others_are_named(bare: Host, tmp_path: Path) -> None:
    IPVS(netns=bare.name).close()  # net.ipv4.vs.* are there once the module is

    async def scenario(at: Plumbed) -> None:
        seen = await at.made(BOTH)
        assert not any("net.ipv4.vs" in text for text in seen.warnings)
        at.plumbing.want(HostWanted(BOTH.vips, BOTH.masquerades, foreign=True))
        await at.until(lambda: any("net.ipv4.vs.expire_nodest_conn=1" in text for text in at.reports[-1].warnings), "it")
        assert any("net.ipv4.vs.conntrack=1" in text for text in at.reports[-1].warnings)

    plumbed(bare, tmp_path / "notes", scenario)


def sysctls(host: Host) -> dict[str, str]:
    lines = host.run("sysctl", "-a", "--pattern", r"^net\.(ipv4\.(ip_forward|conf|vs)|ipv6\.conf)").splitlines()
    pairs = (line.split(" = ", 1) for line in lines if " = " in line)
    return {name: value for name, value in pairs if "stable_secret" not in name}


def state(host: Host) -> dict[str, object]:
    tables = [host.run(f"{tool}-save") for tool in ("iptables-legacy", "ip6tables-legacy")]
    return {
        "ipvs": sorted(host.run("ipvsadm", "-Sn").splitlines()),
        "tables": [[line.partition(" [")[0] for line in text.splitlines() if line[0] != "#"] for text in tables],
        "addresses": host.run("ip", "-oneline", "address", "show"),
        "sysctls": sysctls(host),
    }


def strangers(host: Host) -> None:
    """What others have on the host before we come: services, addresses, rules, switches."""
    host.run("ipvsadm", "-A", "-t", "10.1.0.120:80", "-s", "lc")
    host.run("ipvsadm", "-a", "-t", "10.1.0.120:80", "-r", "10.1.0.11:80", "-m")
    host.run("ip", "address", "add", "10.1.0.120/32", "dev", "eth0")
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        host.run(tool, "-t", "nat", "-A", "POSTROUTING", "-o", "eth9", "-j", "MASQUERADE")
        host.run(tool, "-A", "FORWARD", "-i", "eth9", "-j", "DROP")
    host.run("ip", "link", "add", "eth0.5", "type", "dummy")
    switches = ("conf.all.accept_redirects=0", "conf.eth0/5.forwarding=1", "conf.lo.send_redirects=0")
    host.run("sysctl", "-qw", *(f"net.ipv4.{switch}" for switch in switches), "net.ipv6.conf.eth0/5.forwarding=1")


def test_cleanup_leaves_the_host_as_it_was(bare: Host, tmp_path: Path) -> None:
    strangers(bare)
    before = state(bare)

    async def scenario(at: Plumbed) -> None:
        at.local.claim("nat", {row_text(Masquerade(Protocol.UDP, VIP, 53, "10.1.0.11", 53)): ""})
        at.plumbing.want(BOTH)
        await at.until(lambda: len(at.reports[-1:]) > 0 and len(at.reports[-1].masquerades) == 3, "everything made")
        assert at.reports[-1].failures == {}
        at.local.claim("service", {f"tcp/{VIP}:80": "web", "tcp/10.1.0.140:80": "never made"})
        with IPVS() as ipvs:
            ipvs.add_service(f"tcp/{VIP}:80", scheduler="rr")
            ipvs.add_destination(f"tcp/{VIP}:80", "10.1.0.11:80", method="nat")

    path = tmp_path / "notes"
    plumbed(bare, path, scenario)
    made = state(bare)
    assert [part for part in before if made[part] == before[part]] == [], "each part was changed"
    with entered(bare.name):
        local = notes(path)
        report = cleanup(local, IPVS)
        assert report.left == []
        assert {part: value for part, value in state(bare).items() if value != before[part]} == {}
        assert f"service web (tcp/{VIP}:80) deleted" in report.done
        assert f"VIP {VIP} removed from eth0" in report.done
        assert len([line for line in report.done if "masquerading" in line]) == 3
        assert [local.owned(kind) for kind in ("service", "vip", "sysctl", "nat")] == [{}, {}, {}, {}]
        again = cleanup(local, IPVS)
        assert (again.done, again.left) == ([], [])
        assert state(bare) == before


def test_cleanup_leaves_what_others_changed_since_and_says_so(bare: Host, tmp_path: Path) -> None:
    async def scenario(at: Plumbed) -> None:
        await at.made(HostWanted(frozenset({VIP})))

    path = tmp_path / "notes"
    IPVS(netns=bare.name).close()
    plumbed(bare, path, scenario)
    bare.run("sysctl", "-qw", "net.ipv4.conf.eth0.send_redirects=1", "net.ipv4.conf.all.accept_redirects=1")
    bare.run("sysctl", "-qw", "net.ipv4.vs.expire_nodest_conn=7")
    bare.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
    bare.run("ip", "address", "add", f"{VIP}/32", "dev", "lo")
    with entered(bare.name):
        report = cleanup(notes(path), IPVS)
    assert report.left == [
        "sysctl net.ipv4.vs.expire_nodest_conn: 7 now, not the 1 that we set; it was 0",
    ]
    assert bare.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"
    assert bare.run("sysctl", "-n", "net.ipv4.vs.expire_nodest_conn").strip() == "7"
    assert VIP in bare.run("ip", "-oneline", "address", "show", "dev", "lo"), "not where we put it, so not ours"


def test_looking_for_our_chain_makes_no_table(bare: Host) -> None:
    with entered(bare.name):
        assert [tool for family in (4, 6) for tool in xtables.holding(family, "nat") if xtables.is_legacy(tool)] == []
        assert "nat" not in bare.run("cat", "/proc/net/ip_tables_names", check=False).split()


def test_a_host_without_the_netlink_of_addresses_is_looked_at_by_the_audit(
    bare: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusisd.kernel.host.AUDIT_PERIOD_S", 0.5)
    monkeypatch.setattr(socket, "NETLINK_ROUTE", 31)  # no such protocol

    async def scenario(at: Plumbed) -> None:
        await at.made(HostWanted(frozenset({VIP})))
        bare.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
        await at.until(lambda: VIP in addresses(bare) and at.plumbing.counts["vips_restored"] == 1, "it back")
        assert at.plumbing.counts["address_events"] == 0

    plumbed(bare, tmp_path / "notes", scenario)
