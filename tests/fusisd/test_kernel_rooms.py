"""The pure parts of the kernel room: frames, rules, switches."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusisd.kernel import announce, nat, sysctl
from fusisd.kernel.sysctl import TABLE, Row, SysctlError, When
from fusisd.model import Masquerade
from pyipvs import Protocol

MAC = bytes.fromhex("020000000001")


def test_a_gratuitous_arp_is_the_vip_asking_for_itself() -> None:
    assert announce.gratuitous_arp(MAC, "10.0.0.1").hex() == (
        "ffffffffffff" "020000000001" "0806"
        "0001" "0800" "06" "04" "0001" "020000000001" "0a000001" "000000000000" "0a000001"
    )  # fmt: skip


def test_an_unsolicited_advertisement_overrides_and_names_the_link_address() -> None:
    message = announce.unsolicited_advertisement(MAC, "fd00::1").hex()
    assert message == "88" "00" "0000" "20000000" "fd000000000000000000000000000001" "0201" "020000000001"


def test_a_masquerade_rule_matches_balanced_connections_only() -> None:
    row = Masquerade(Protocol.TCP, "10.0.0.1", 80, "10.0.0.11", 8080)
    assert nat.rule(row) == (
        "-A FUSIS-MASQ -p tcp -d 10.0.0.11/32 --dport 8080"
        " -m conntrack --ctorigdst 10.0.0.1 --ctorigdstport 80 -j MASQUERADE"
    )
    assert nat.restore_text(["-A x"]) == "*nat\n:FUSIS-MASQ - [0:0]\n-A x\nCOMMIT\n"


def names(masquerade: bool = False, ipv6: bool = False, version: tuple[int, int] = (6, 1)) -> list[str]:
    return [row.name for row in sysctl.rows(masquerade, ipv6, version)]


def test_every_row_has_a_reason_and_a_condition_under_which_it_applies() -> None:
    assert all(row.reason for row in TABLE)
    everything = names(True, True, (5, 8))
    assert [row.name for row in TABLE] == everything


@pytest.mark.parametrize(
    ("name", "with_it", "without_it"),
    [
        ("net/ipv4/ip_forward", names(), []),
        ("net/ipv4/vs/expire_nodest_conn", names(), []),
        ("net/ipv4/vs/expire_quiescent_template", names(), []),
        ("net/ipv4/conf/all/send_redirects", names(), []),
        ("net/ipv4/vs/conntrack", names(masquerade=True), names()),
        ("net/ipv6/conf/all/forwarding", names(ipv6=True), names()),
        ("net/ipv6/conf/*/accept_ra", names(ipv6=True), names()),
        ("net/ipv4/vs/conn_reuse_mode", names(version=(5, 8)), names(version=(5, 9))),
    ],
)
def test_a_row_applies_when_it_should(name: str, with_it: list[str], without_it: list[str]) -> None:
    assert name in with_it
    assert name not in without_it


def test_accept_ra_is_set_before_forwarding_makes_the_host_drop_its_route() -> None:
    order = names(ipv6=True)
    assert order.index("net/ipv6/conf/*/accept_ra") < order.index("net/ipv6/conf/all/forwarding")


def test_a_kernel_s_version_is_read_from_its_release() -> None:
    assert sysctl.kernel_version("5.10.0-28-amd64") == (5, 10)
    assert sysctl.kernel_version("6.1.176") == (6, 1)


def test_the_previous_value_is_noted_before_the_change_and_equal_ones_are_left(tmp_path: Path) -> None:
    for iface, value in (("all", "1"), ("eth0", "1"), ("eth1", "0"), ("eth2", "2")):
        (tmp_path / "conf" / iface).mkdir(parents=True)
        (tmp_path / "conf" / iface / "accept_ra").write_text(value + "\n")
    noted: dict[str, str] = {}
    row = Row("conf/*/accept_ra", "2", When.ALWAYS, "test", only_from="1")
    sysctl.apply(row, noted.__setitem__, tmp_path)
    assert noted == {"conf.all.accept_ra": "1", "conf.eth0.accept_ra": "1"}
    values = {p.parent.name: p.read_text().strip() for p in tmp_path.glob("conf/*/accept_ra")}
    assert values == {"all": "2", "eth0": "2", "eth1": "0", "eth2": "2"}


def test_a_switch_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SysctlError, match="--no-sysctl"):
        sysctl.apply(Row("net/nosuch", "1", When.ALWAYS, "test"), lambda _name, _previous: None, tmp_path)
