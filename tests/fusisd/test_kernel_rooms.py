"""The parts of the kernel room that need no kernel: messages, rules, switches, firewalls judged, timers, bells."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd import notes
from fusisd.errors import Invalid
from fusisd.kernel import announce, ethernet, events, firewall, nat, sysctl, xtables
from fusisd.kernel.announce import AnnounceError, Announcer
from fusisd.kernel.host import purposes
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.kernel.sysctl import TABLE, Row, Switch, SysctlError, When
from fusisd.model import HostWanted, Masquerade
from pyipvs import IPVS, Change, Failure, Protocol, Service, ServiceKey
from pyipvs.testing import FakeKernel

MAC = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("020000000002")


def test_a_gratuitous_arp_is_the_vip_asking_for_itself() -> None:
    assert ethernet.gratuitous_arp(MAC, "10.0.0.1").hex() == (
        "ffffffffffff" "020000000001" "0806"
        "0001" "0800" "06" "04" "0001" "020000000001" "0a000001" "000000000000" "0a000001"
    )  # fmt: skip


def test_an_arp_probe_claims_no_address() -> None:
    assert ethernet.arp_probe(MAC, "10.0.0.1").hex() == (
        "ffffffffffff" "020000000001" "0806"
        "0001" "0800" "06" "04" "0001" "020000000001" "00000000" "000000000000" "0a000001"
    )  # fmt: skip


def test_an_unsolicited_advertisement_overrides_and_names_the_link_address() -> None:
    message = ethernet.unsolicited_advertisement(MAC, "fd00::1").hex()
    assert message == "88" "00" "0000" "20000000" "fd000000000000000000000000000001" "0201" "020000000001"


def test_a_solicitation_goes_to_the_group_of_the_address() -> None:
    message = ethernet.solicitation(MAC, "fd00::1").hex()
    assert message == "87" "00" "0000" "00000000" "fd000000000000000000000000000001" "0101" "020000000001"
    assert ethernet.solicited_node("fd00::12:3456") == "ff02::1:ff12:3456"


def test_who_uses_an_address_says_so_in_any_arp_packet() -> None:
    claim = ethernet.gratuitous_arp(OTHER, "10.0.0.1")
    reply = claim[:20] + b"\0\2" + claim[22:]
    assert [ethernet.arp_claimant(frame, "10.0.0.1") for frame in (claim, reply)] == [OTHER, OTHER]
    assert ethernet.arp_claimant(claim, "10.0.0.2") is None
    assert ethernet.arp_claimant(ethernet.arp_probe(OTHER, "10.0.0.1"), "10.0.0.1") is None, "it only asks"


def test_who_advertises_an_address_names_its_link_address() -> None:
    message = ethernet.unsolicited_advertisement(OTHER, "fd00::1")
    other_option = message[:24] + bytes([14, 1]) + bytes(6) + message[24:]
    assert [ethernet.advertiser(heard, "fd00::1") for heard in (message, other_option)] == [OTHER, OTHER]
    assert ethernet.advertiser(message, "fd00::2") is None
    assert ethernet.advertiser(ethernet.solicitation(OTHER, "fd00::1"), "fd00::1") is None


@given(st.binary(max_size=80))
def test_what_comes_from_the_wire_may_be_anything(data: bytes) -> None:
    claim, message = ethernet.gratuitous_arp(OTHER, "10.0.0.1"), ethernet.unsolicited_advertisement(OTHER, "fd00::1")
    for heard in (data, claim[:22] + data, message[:24] + data):
        for said in (ethernet.arp_claimant(heard, "10.0.0.1"), ethernet.advertiser(heard, "fd00::1")):
            assert said is None or len(said) == 6


def test_an_announcement_is_repeated_until_its_vip_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "PAUSES_S", (0.001, 0.001, 3600.0))
    said: list[str] = []

    async def scenario() -> None:
        announcer = Announcer(said.append)
        announcer.begin("10.0.0.1")
        announcer.begin("10.0.0.2")
        announcer.drop("10.0.0.2")
        while len(said) < 4:
            await asyncio.sleep(0.001)
        assert announcer.pending == {"10.0.0.1"}, "one handle, however often it was said"
        announcer.begin("10.0.0.1")
        announcer.close()
        assert announcer.pending == frozenset()

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert said == ["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.1", "10.0.0.1"]


def test_an_announcement_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "PAUSES_S", (0.001,))
    tried: list[str] = []

    def send(vip: str) -> None:
        tried.append(vip)
        raise AnnounceError("no such device")

    async def scenario() -> None:
        announcer = Announcer(send)
        announcer.begin("10.0.0.1")
        while announcer.pending:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert tried == ["10.0.0.1", "10.0.0.1"]


class Storm:
    """A netlink socket that lost events and then has nothing more."""

    def __init__(self) -> None:
        self.answers: list[OSError] = [OSError(errno.ENOBUFS, "lost"), BlockingIOError()]
        self.twin, self.far = socket.socketpair()

    def bind(self, _address: tuple[int, int]) -> None:
        self.far.send(b"x")

    def fileno(self) -> int:
        return self.twin.fileno()

    def recv(self, _size: int) -> bytes:
        raise self.answers.pop(0)

    def close(self) -> None:
        self.twin.close()
        self.far.close()


def test_lost_events_ring_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        rung, storm = asyncio.Event(), Storm()
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", lambda *_words: storm)
            bell = events.AddressEvents(rung.set)
        await rung.wait()
        bell.close()
        assert storm.answers == []

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_masquerade_rule_matches_balanced_connections_only() -> None:
    row = Masquerade(Protocol.TCP, "10.0.0.1", 80, "10.0.0.11", 8080)
    assert nat.rule(row) == (
        "-A FUSIS-MASQ -p tcp -d 10.0.0.11/32 --dport 8080"
        " -m conntrack --ctorigdst 10.0.0.1 --ctorigdstport 80 -j MASQUERADE"
    )
    assert nat.restore_text(["-A x"]) == "*nat\n:FUSIS-MASQ - [0:0]\n-A x\nCOMMIT\n"


def test_a_service_of_all_ports_is_masqueraded_on_all() -> None:
    row = Masquerade(Protocol.UDP, "fd00::1", 0, "fd00::11", 0)
    assert nat.rule(row) == "-A FUSIS-MASQ -p udp -d fd00::11/128 -m conntrack --ctorigdst fd00::1 -j MASQUERADE"


ports = st.integers(0, 65535)


def rows_of(addresses: st.SearchStrategy[object]) -> st.SearchStrategy[Masquerade]:
    unicast = addresses.map(str)
    return st.builds(Masquerade, st.sampled_from(Protocol), unicast, ports, unicast, ports)


ROWS = rows_of(st.integers(0x0A000001, 0x0AFFFFFF).map(lambda n: ".".join(map(str, n.to_bytes(4, "big")))))
ROWS6 = rows_of(st.binary(min_size=15, max_size=15).map(lambda low: socket.inet_ntop(socket.AF_INET6, b"\xfd" + low)))


@given(ROWS | ROWS6)
def test_a_row_survives_its_text(row: Masquerade) -> None:
    assert notes.row_of(notes.row_text(row)) == row


@given(st.text() | st.lists(st.sampled_from(["tcp", "10.0.0.1", "80", "-1", "65536", "x"]), max_size=6).map(" ".join))
def test_a_text_is_a_row_or_is_refused(text: str) -> None:
    try:
        row = notes.row_of(text)
    except Invalid:
        return
    assert notes.row_of(notes.row_text(row)) == row


OPEN = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
DOCKER = [
    "-P INPUT ACCEPT", "-P FORWARD DROP", "-P OUTPUT ACCEPT", "-N DOCKER", "-N DOCKER-USER",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A FORWARD -o docker0 -j DOCKER",
    "-A DOCKER-USER -j RETURN",
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["-P FORWARD ACCEPT"], ""),
        (["-P FORWARD DROP"], "the policy DROP of FORWARD"),
        (DOCKER, "the policy DROP of FORWARD"),
        ([*DOCKER[:5], OPEN, *DOCKER[5:]], ""),
        ([*DOCKER[:8], "-A DOCKER-USER -m state --state ESTABLISHED -j ACCEPT", DOCKER[8]], ""),
        (["-P FORWARD DROP", "-A FORWARD -i eth0 -j ACCEPT"], "the policy DROP of FORWARD"),
        (["-P FORWARD ACCEPT", "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"], "a rule REJECT in FORWARD"),
        (["-P FORWARD ACCEPT", OPEN, "-A FORWARD -j DROP"], ""),
        (["-P FORWARD ACCEPT", "-A FORWARD -j DROP", OPEN], "a rule DROP in FORWARD"),
        (["-P FORWARD DROP", '-A FORWARD -m comment --comment "all of it" -j ACCEPT'], ""),
        (["-P FORWARD DROP", "-A FORWARD -j A", "-A A -j B", "-A B -j A"], "the policy DROP of FORWARD"),
        ([], ""),
    ],
)
def test_a_closed_forward_chain_is_told_from_an_open_one(lines: list[str], why: str) -> None:
    assert firewall.closed_by(lines) == why


def test_nft_s_own_chains_are_found_and_iptables_ones_are_not_counted_twice() -> None:
    def chain(family: str, table: str, name: str, **more: object) -> str:
        return json.dumps({"chain": {"family": family, "table": table, "name": name, "handle": 1, **more}})

    drop = {"type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}
    rows = [
        '{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}',
        chain("ip", "filter", "FORWARD", **drop),
        chain("inet", "guard", "forward", **drop),
        chain("inet", "open", "forward", **(drop | {"policy": "accept"})),
        chain("inet", "guard", "input", **(drop | {"hook": "input"})),
        chain("ip6", "guard", "forward", **drop),
        chain("bridge", "guard", "forward", **drop),
        chain("inet", "guard", "plain"),
    ]
    document = f'{{"nftables": [{", ".join(rows)}]}}'
    assert firewall.forward_chains(document, [4]) == [("inet", "guard", "forward")]
    assert firewall.forward_chains(document, [4, 6]) == [("inet", "guard", "forward"), ("ip6", "guard", "forward")]
    assert firewall.forward_chains("no json", [4]) == []


def test_a_legacy_table_is_looked_at_only_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"iptables": False, "iptables-legacy": True}
    monkeypatch.setattr(xtables, "is_legacy", kinds.get)
    assert list(xtables.holding(4, "nat", tmp_path)) == ["iptables"]
    (tmp_path / "ip_tables_names").write_text("filter\nnat\n")
    assert list(xtables.holding(4, "nat", tmp_path)) == ["iptables", "iptables-legacy"]
    kinds["iptables"] = True
    assert list(xtables.holding(4, "nat", tmp_path)) == ["iptables"], "the same kind twice"
    assert list(xtables.holding(6, "nat", tmp_path)) == [], "not installed"


EVERYTHING = {When.MASQUERADE, When.IPV6, When.PATH_CHECK}


def names(*purposes: When, version: tuple[int, int] = (6, 1)) -> list[str]:
    return [row.name for row in sysctl.rows(purposes, version)]


def test_every_row_has_a_reason_and_a_condition_under_which_it_applies() -> None:
    assert all(row.reason for row in TABLE)
    assert [row.name for row in TABLE] == names(*EVERYTHING, version=(5, 8))


@pytest.mark.parametrize(
    ("name", "with_it", "without_it"),
    [
        ("net/ipv4/ip_forward", names(), []),
        ("net/ipv4/vs/expire_nodest_conn", names(), []),
        ("net/ipv4/vs/expire_quiescent_template", names(), []),
        ("net/ipv4/conf/*/send_redirects", names(), []),
        ("net/ipv4/vs/conntrack", names(When.MASQUERADE), names(When.IPV6, When.PATH_CHECK)),
        ("net/ipv6/conf/all/forwarding", names(When.IPV6), names(When.MASQUERADE, When.PATH_CHECK)),
        ("net/ipv6/conf/*/accept_ra", names(When.IPV6), names(When.MASQUERADE, When.PATH_CHECK)),
        ("net/ipv4/conf/{iface}/accept_local", names(When.PATH_CHECK), names(When.MASQUERADE, When.IPV6)),
        ("net/ipv4/conf/{iface}/rp_filter", names(When.PATH_CHECK), names(When.MASQUERADE, When.IPV6)),
        ("net/ipv4/vs/conn_reuse_mode", names(version=(5, 8)), names(version=(5, 9))),
    ],
)
def test_a_row_applies_when_it_should(name: str, with_it: list[str], without_it: list[str]) -> None:
    assert name in with_it
    assert name not in without_it


def test_what_is_wanted_says_what_the_switches_are_for() -> None:
    row = Masquerade(Protocol.TCP, "10.0.0.1", 80, "10.0.0.11", 80)
    assert purposes(HostWanted(frozenset({"10.0.0.1"}))) == set()
    assert purposes(HostWanted(frozenset({"10.0.0.1"}), frozenset({row}))) == {When.MASQUERADE}
    assert purposes(HostWanted(frozenset({"10.0.0.1", "fd00::1"}))) == {When.IPV6}


def test_accept_ra_is_set_before_forwarding_makes_the_host_drop_its_route() -> None:
    order = names(When.IPV6)
    assert order.index("net/ipv6/conf/*/accept_ra") < order.index("net/ipv6/conf/all/forwarding")


def test_a_kernel_s_version_is_read_from_its_release() -> None:
    assert sysctl.kernel_version("5.10.0-28-amd64") == (5, 10)
    assert sysctl.kernel_version("6.1.176") == (6, 1)


def switches(root: Path, values: dict[str, str]) -> None:
    for name, value in values.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value + "\n")


def values(root: Path, pattern: str) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text().strip() for path in sorted(root.glob(pattern))}


def test_what_is_not_as_it_should_be_is_noted_and_set_and_the_rest_is_left(tmp_path: Path) -> None:
    accept_ra = {"conf/all/accept_ra": "1", "conf/e0.5/accept_ra": "1", "conf/e1/accept_ra": "0", "conf/e2/accept_ra": "2"}
    switches(tmp_path, accept_ra)
    row = Row("conf/*/accept_ra", "2", When.ALWAYS, "test", only_from="1")
    found, right, failures = sysctl.look([row], "e0", tmp_path)
    assert (right, failures) == ({"conf.e2.accept_ra"}, {})
    assert {switch.name: switch.previous for switch in found} == {"conf.all.accept_ra": "1", "conf.e0/5.accept_ra": "1"}
    for switch in found:
        sysctl.write(switch, tmp_path)
    assert values(tmp_path, "conf/*/*") == accept_ra | {"conf/all/accept_ra": "2", "conf/e0.5/accept_ra": "2"}
    assert sysctl.look([row], "e0", tmp_path).pending == []


@pytest.mark.parametrize(
    ("of_all", "own", "changed"), [("1", "0", True), ("0", "1", True), ("2", "1", False), ("0", "0", False)]
)
def test_of_rp_filter_the_larger_value_counts(tmp_path: Path, of_all: str, own: str, changed: bool) -> None:
    (row,) = (row for row in TABLE if row.name.endswith("rp_filter"))
    switches(tmp_path, {"net/ipv4/conf/all/rp_filter": of_all, "net/ipv4/conf/e0/rp_filter": own})
    found, _right, _failures = sysctl.look([row], "e0", tmp_path)
    assert found == ([Switch("net.ipv4.conf.e0.rp_filter", own, "2", row.reason)] if changed else [])


def test_a_switch_that_is_right_by_that_of_all_alone_has_a_value_of_its_own_to_go_back_to(tmp_path: Path) -> None:
    (row,) = (row for row in TABLE if row.name.endswith("accept_local"))
    switches(tmp_path, {f"net/ipv4/conf/{name}/accept_local": value for name, value in (("all", "1"), ("e0", "0"))})
    assert sysctl.look([row], "e0", tmp_path) == ([], set(), {})
    switches(tmp_path, {"net/ipv4/conf/e0/accept_local": "1"})
    assert sysctl.look([row], "e0", tmp_path) == ([], {"net.ipv4.conf.e0.accept_local"}, {})


def test_a_switch_that_is_not_there_stops_no_other_and_is_said_with_what_to_do(tmp_path: Path) -> None:
    switches(tmp_path, {"net/there": "0"})
    rows = [Row("net/nosuch", "1", When.ALWAYS, "test"), Row("net/there", "1", When.ALWAYS, "test")]
    found, _right, failures = sysctl.look(rows, "e0", tmp_path)
    assert [switch.name for switch in found] == ["net.there"]
    assert list(failures) == ["net.nosuch"]
    assert "--no-sysctl" in failures["net.nosuch"]


def test_a_switch_that_cannot_be_set_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "net" / "there").mkdir(parents=True)
    with pytest.raises(SysctlError, match="--no-sysctl"):
        sysctl.write(Switch("net.there", "0", "1", "test"), tmp_path)


HARDENED = {"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/accept_redirects": "0", "net/ipv4/conf/e1/forwarding": "1"}
FORWARDING = {"net.ipv4.ip_forward": "0", "net.ipv4.conf.all.accept_redirects": "0", "net.ipv4.conf.e1.forwarding": "1"}


def test_what_the_kernel_sets_along_is_noted_too(tmp_path: Path) -> None:
    switches(tmp_path, HARDENED)
    found, _right, _failures = sysctl.look(TABLE[:1], "e0", tmp_path)
    assert {switch.name: switch.previous for switch in found} == FORWARDING
    assert [switch.name for switch in found if switch.value is not None] == ["net.ipv4.ip_forward"]


def test_what_was_set_is_put_back_and_what_others_set_since_is_left(tmp_path: Path) -> None:
    noted = {"net.ipv4.ip_forward": "0", "net.ipv4.vs.conntrack": "0", "net.ipv4.vs.expire_nodest_conn": "0",
             "net.ipv4.conf.gone.send_redirects": "1"}  # fmt: skip
    switches(tmp_path, {"net/ipv4/ip_forward": "1", "net/ipv4/vs/conntrack": "0", "net/ipv4/vs/expire_nodest_conn": "7"})
    restored = sysctl.restore(noted, tmp_path)
    assert restored.done == {"net.ipv4.ip_forward": "0"}
    assert list(restored.changed) == ["net.ipv4.vs.expire_nodest_conn"]
    assert restored.failed == {}
    assert values(tmp_path, "net/ipv4/vs/*") == {"net/ipv4/vs/conntrack": "0", "net/ipv4/vs/expire_nodest_conn": "7"}


def test_a_switch_that_cannot_be_put_back_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switches(tmp_path, {"net/ipv4/ip_forward": "1"})

    def refused(_path: Path, _text: str) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "write_text", refused)
    restored = sysctl.restore({"net.ipv4.ip_forward": "0"}, tmp_path)
    assert (restored.done, restored.changed) == ({}, {})
    assert "Operation not permitted" in restored.failed["net.ipv4.ip_forward"]


def test_things_are_put_back_in_reverse_so_that_forwarding_goes_before_accept_ra() -> None:
    order = ["net.ipv6.conf.all.forwarding", "net.ipv6.conf.e0.accept_ra", "net.ipv4.ip_forward",
             "net.ipv4.conf.e1.forwarding"]  # fmt: skip
    assert sorted(reversed(order), key=sysctl._rank) == order


def test_switches_of_ipvs_are_named_for_those_who_share_them() -> None:
    shared = sysctl.shared_warning(["net.ipv4.vs.expire_nodest_conn", "net.ipv4.ip_forward", "net.ipv4.vs.conntrack"])
    assert shared.endswith(": net.ipv4.vs.conntrack=1, net.ipv4.vs.expire_nodest_conn=1")
    assert sysctl.shared_warning(["net.ipv4.ip_forward"]) == ""


def test_too_few_conntrack_entries_are_said_with_the_figure(tmp_path: Path) -> None:
    assert sysctl.conntrack_warning(tmp_path) == ""
    switches(tmp_path, {"net/netfilter/nf_conntrack_max": "12000"})
    assert "about 100 new connections a second" in sysctl.conntrack_warning(tmp_path)
    switches(tmp_path, {"net/netfilter/nf_conntrack_max": "262144"})
    assert sysctl.conntrack_warning(tmp_path) == ""


class Counting(IpvsKernel):
    """Counts what is given to the kernel."""

    calls = 0

    def apply(self, changes: Sequence[Change]) -> Sequence[Failure]:
        self.calls += 1
        return super().apply(changes)


def test_a_scheduler_that_loads_is_tried_once_and_one_that_does_not_each_time() -> None:
    with IPVS(transport=FakeKernel(schedulers=["rr"])) as ipvs:
        kernel, key = Counting(ipvs, None), ServiceKey.parse("tcp/10.0.0.1:80")
        assert [kernel.can_load(Service(key, "rr")) for _ in range(3)] == ["", "", ""]
        assert kernel.calls == 1
        assert all("no such scheduler" in kernel.can_load(Service(key, "wlc")) for _ in range(2))
        assert kernel.calls == 3, "its module may be installed meanwhile"
        assert ipvs.services() == [], "nothing of the trial is left"
