"""Saved tables and the real ipvsadm: each reads what the other writes."""

from __future__ import annotations

import subprocess

import pytest

from pyipvs import IPVS, Destination, ForwardingMethod, Service, ServiceFlags, ServiceKey, Tunnel, TunnelType
from pyipvs.savefile import parse, render
from tests.lab.topology import Host
from tests.pyipvs.conformance import DESTINATIONS, SERVICES

Table = list[tuple[Service, list[Destination]]]

ROUTE, TUNNEL = ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL
FLAGS = ServiceFlags
WEB, MARK, MARK6 = ServiceKey.parse("10.0.0.1:80"), ServiceKey.fwmark(7), ServiceKey.parse("fwmark6/7")
WEB6 = ServiceKey.parse("[fd00::1]:80")


def _tunnel(tunnel: Tunnel, address: str = "10.0.0.2") -> Destination:
    return Destination(address, 80, 1, TUNNEL, tunnel=tunnel)


SAME: list[tuple[Service, list[Destination]]] = [  # written by us and by ipvsadm in the same words
    (Service(WEB, "rr"), []),
    (Service(ServiceKey.parse("udp/10.0.0.1:53"), "rr", FLAGS.ONE_PACKET), [Destination("10.0.0.2", 5353)]),
    (Service(ServiceKey.parse("sctp/10.0.0.1:9"), "wrr"), [Destination("10.0.0.2", 9, 65535, ROUTE)]),
    (Service(ServiceKey.parse("sctp/[fd00::1]:9"), "wrr"), [Destination("fd00::2", 10, 0)]),
    (Service(ServiceKey.parse("10.0.0.1:0"), "rr", persistence_s=1), [Destination("10.0.0.2", 0, 1, ROUTE)]),
    (Service(WEB, "rr", persistence_s=300), [Destination("10.0.0.10", 80), Destination("10.0.0.9", 81)]),
    (Service(WEB, "rr", persistence_s=300, netmask=20), []),
    (Service(WEB6, "rr", persistence_s=300), [Destination("fd00::2", 80, 1, ROUTE)]),
    (Service(WEB6, "rr", persistence_s=300, netmask=64), []),
    (Service(MARK, "rr"), [Destination("10.0.0.2", 0, 1, ROUTE), Destination("10.0.0.2", 80, 1, ROUTE)]),
    (Service(MARK6, "rr", persistence_s=9, netmask=48), [Destination("fd00::2", 80)]),
    (Service(MARK, "mh", FLAGS.SCHED1 | FLAGS.SCHED2), []),
    (Service(WEB6, "sh", FLAGS.SH_FALLBACK), []),
    (Service(WEB, "wlc", FLAGS.SCHED1 | FLAGS.SCHED2 | FLAGS.SCHED3), []),
    (Service(ServiceKey.parse("udp/10.0.0.1:5060"), "rr", FLAGS.ONE_PACKET, 60, 24, "sip"), []),
    (Service(WEB, "rr"), [_tunnel(Tunnel()), _tunnel(Tunnel(TunnelType.IPIP), "fd00::2")]),
    (Service(WEB, "rr"), [_tunnel(Tunnel(TunnelType.GRE, 0, flags), f"10.0.0.{flags + 2}") for flags in (0, 1)]),
    (Service(WEB6, "rr"), [_tunnel(Tunnel(TunnelType.GUE, 9, flags), f"fd00::{flags + 2}") for flags in (0, 1, 2)]),
]
OURS: list[tuple[Service, list[Destination]]] = [  # what ipvsadm would lose, or not read again
    (Service(WEB, "rr"), [Destination("10.0.0.2", 80, upper_threshold=9, lower_threshold=5)]),
    (Service(WEB, "rr"), [Destination("10.0.0.2", 80, upper_threshold=2**31 - 1)]),
    (Service(ServiceKey.fwmark(2**32 - 1), "rr"), [Destination("10.0.0.2", 80)]),
    (Service(MARK, "sh", FLAGS.SH_PORT | FLAGS.SCHED3), []),
]


def _make(ipvs: IPVS, table: Table) -> None:
    for service, rows in table:
        ipvs.add_service(service)
        for row in rows:
            ipvs.add_destination(service.key, row)


def _made(ipvs: IPVS) -> dict[ServiceKey, tuple[Service, dict[tuple[str, int], Destination]]]:
    keys = [status.service.key for status in ipvs.services()]
    return _by_key([(ipvs.service(key).service, [row.destination for row in ipvs.destinations(key)]) for key in keys])


def _by_key(table: Table) -> dict[ServiceKey, tuple[Service, dict[tuple[str, int], Destination]]]:
    return {service.key: (service, {row.key: row for row in rows}) for service, rows in table}


def _restore(netns: Host, text: str) -> str:
    """Let ipvsadm do it; what it complained of. (Its exit status is that of the last line.)"""
    argv = netns.argv("ipvsadm", "-R")
    return subprocess.run(argv, check=False, input=text, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize("entry", SAME + OURS, ids=lambda entry: render([entry]).replace("\n", ";"))
def test_ipvsadm_restores_what_is_rendered(ipvs: IPVS, netns: Host, entry: tuple[Service, list[Destination]]) -> None:
    text = render([entry])
    assert _restore(netns, text) == ""
    assert _made(ipvs) == _by_key([entry]) == _by_key(parse(text))


@pytest.mark.parametrize("entry", SAME, ids=lambda entry: render([entry]).replace("\n", ";"))
def test_the_same_table_gives_the_same_lines(ipvs: IPVS, netns: Host, entry: tuple[Service, list[Destination]]) -> None:
    _make(ipvs, [entry])
    # ipvs_cmp_dests in libipvs.c subtracts addresses as ints, so its order is not one of numbers
    assert sorted(netns.run("ipvsadm", "-Sn").splitlines()) == sorted(render([entry]).splitlines())


def test_a_whole_table_gives_the_same_lines_but_for_thresholds(ipvs: IPVS, netns: Host) -> None:
    table = [(s, [row for key, row in DESTINATIONS if key == str(s.key)]) for s in SERVICES]
    _make(ipvs, table)
    saved, rendered = netns.run("ipvsadm", "-Sn"), render(table)
    assert sorted(saved.splitlines()) == sorted(rendered.replace(" -x 100 -y 80", "").splitlines())
    ipvs.flush()
    assert _restore(netns, rendered) == ""
    assert _made(ipvs) == _by_key(table) == _by_key(parse(rendered))


@pytest.mark.parametrize("entry", OURS[:1] + OURS[2:], ids=lambda entry: render([entry]).replace("\n", ";"))
def test_what_is_written_otherwise_is_what_ipvsadm_loses(
    ipvs: IPVS, netns: Host, entry: tuple[Service, list[Destination]]
) -> None:
    _make(ipvs, [entry])
    saved = netns.run("ipvsadm", "-Sn")
    assert saved != render([entry])
    ipvs.flush()
    _restore(netns, saved)
    assert _made(ipvs) != _by_key([entry])


@pytest.mark.parametrize(
    "text",
    [
        "-At10.0.0.1:80 -srr\n-at=10.0.0.1:80 -r10.0.0.2 -mw3\n",
        "--add-service --tcp-service=10.0.0.1:80 --scheduler rr --persistent --netmask 255.255.0.0\n",
        "-A -p -t 10.0.0.1:http\n-a -r 10.0.0.2:8080 -t 10.0.0.1:http\n",
        "ipvsadm -A -t 10.0.0.1 -p\nipvsadm -a -t 10.0.0.1 -r 10.0.0.2\n",
        "-A -t fd00::1 -p 9 -M 64\n-a -t fd00::1 -r fd00::2 --gatewaying\n-a -t [fd00::1]:0 -r 10.0.0.2:7 --ipip\n",
        "-A -f 7 --ipv6 --ops -b flag-1,flag-3\n-a -f 7 -6 -r [fd00::2]:8 --weight=2 --u-threshold=9 --l-threshold=5\n",
        "-A -op9 -f 7\n-a -f 7 -r 10.0.0.2 --masquerading\n",
    ],
)
def test_both_read_the_same_out_of_a_text(ipvs: IPVS, netns: Host, text: str) -> None:
    assert _restore(netns, text) == ""
    assert _made(ipvs) == _by_key(parse(text))


def test_port_names_of_a_table_saved_without_n_are_read(ipvs: IPVS, netns: Host) -> None:
    keys = [ServiceKey.parse(text) for text in ("192.0.2.1:80", "udp/192.0.2.1:53", "tcp/[2001:db8::1]:443")]
    table = [(Service(key, "rr"), [Destination(key.address or "", key.port or 0)]) for key in keys]
    _make(ipvs, table)
    saved = netns.run("ipvsadm", "-S")
    assert all(name in saved for name in ("192.0.2.1:http ", "192.0.2.1:domain ", "[2001:db8::1]:https "))
    assert _by_key(parse(saved)) == _by_key(table)
