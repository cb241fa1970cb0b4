"""The table as a value: equality, text, and the fewest changes from one to another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyipvs import (
    IPVS,
    AddDestination,
    DeleteService,
    Destination,
    Family,
    Protocol,
    Ruleset,
    Service,
    ServiceKey,
    Tunnel,
    UpdateDestination,
    diff,
    wire,
)
from pyipvs.const import Command, SvcFlag
from pyipvs.ruleset import Entry
from pyipvs.testing import FakeKernel
from pyipvs.wire import trusted

WEB, DNS = Service(ServiceKey.parse("tcp/10.0.0.1:80"), "rr"), Service(ServiceKey.parse("udp/[fd00::1]:53"), "wlc")
A, B, C = (Destination(f"10.0.0.{number}", 80) for number in (11, 12, 13))


@st.composite
def tables(draw: st.DrawFn) -> Ruleset:
    """Small tables that have much in common."""
    keys = draw(st.sets(st.sampled_from(["tcp/10.0.0.1:80", "udp/10.0.0.1:53", "tcp/10.0.0.2:80", "fwmark/7"])))
    services = []
    for key in keys:
        service = Service(ServiceKey.parse(key), draw(st.sampled_from(["rr", "wrr"])), 0, draw(st.sampled_from([0, 300])))
        chosen = draw(st.sets(st.integers(2, 5)))
        weights = st.integers(0, 2)
        services.append((service, [Destination(f"10.0.1.{number}", 80, draw(weights)) for number in sorted(chosen)]))
    return Ruleset(services)


@given(tables(), tables())
def test_applying_the_difference_makes_the_other_table_and_twice_changes_nothing(old: Ruleset, new: Ruleset) -> None:
    with IPVS(transport=FakeKernel()) as ipvs:
        ipvs.apply(diff(Ruleset(), old))
        assert ipvs.snapshot() == old
        changes = diff(ipvs.snapshot(), new)
        assert len(changes) <= sum(len(table) + sum(map(len, table.values())) for table in (old, new))
        ipvs.apply(changes)
        for statistics in (True, False):
            assert ipvs.snapshot(statistics) == new
            assert diff(ipvs.snapshot(statistics), new) == []


def test_a_changed_weight_is_one_update() -> None:
    old, new = Ruleset([(WEB, [A, B])]), Ruleset([(WEB, [B, Destination("10.0.0.11", 80, 5)])])
    assert diff(old, new) == [UpdateDestination(WEB.key, Destination("10.0.0.11", 80, 5))]
    assert repr(diff(old, new)) == "update destination 10.0.0.11:80 of tcp/10.0.0.1:80 (nat, weight 5)"
    assert repr(diff(old, old)) == "no changes"


def test_what_comes_is_made_before_what_goes_is_deleted() -> None:
    changes = diff(Ruleset([(WEB, [A]), (DNS, [])]), Ruleset([(WEB, [B, C])]))
    assert changes == [AddDestination(WEB.key, B), AddDestination(WEB.key, C), *changes[2:]]
    assert [str(change) for change in changes[2:]] == [
        "delete destination 10.0.0.11:80 of tcp/10.0.0.1:80",
        "delete service udp/[fd00::1]:53",
    ]
    assert changes[-1] == DeleteService(DNS.key)


def test_tables_are_equal_when_they_are_configured_alike() -> None:
    assert Ruleset([(WEB, [A, B]), (DNS, [])]) == Ruleset([(DNS, []), (WEB, [B, A])])
    assert Ruleset([(WEB, [A])]) != Ruleset([(WEB, [B])])
    assert Ruleset([(WEB, [A])]) != Ruleset([(Service(WEB.key, "wrr"), [A])])


def test_text_comes_back_as_the_same_table() -> None:
    table = Ruleset([(WEB, [A, B]), (DNS, [Destination("fd00::2", 53, 0)])])
    assert Ruleset.parse(table.text()) == table
    assert repr(table) == table.text().rstrip()
    assert repr(Ruleset()) == "an empty table"


def test_what_stands_twice_or_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tcp/10\.0\.0\.1:80 comes twice"):
        Ruleset([(WEB, []), (WEB, [])])
    with pytest.raises(ValueError, match="destination of tcp"):
        Ruleset([(WEB, [A, Destination("10.0.0.11", 80, 7)])])
    with pytest.raises(ValueError, match="port 81"):
        Ruleset([(WEB, [Destination("10.0.0.11", 81, method="route")])])


def test_entries_are_looked_up_by_key_or_text() -> None:
    table = Ruleset([(WEB, [A, B])])
    entry = table["tcp/10.0.0.1:80"]
    assert entry.destinations == (A, B)
    assert (entry.service, len(entry), repr(entry)) == (WEB, 2, "<tcp/10.0.0.1:80 rr, 2 destinations>")
    assert "tcp/10.0.0.9:80" not in table
    with pytest.raises(ValueError, match="snapshot"):
        _ = entry.status


def test_destinations_go_in_the_order_in_which_they_stand() -> None:
    """Of a set they would go in another one in each process."""
    every = [Destination(f"10.0.0.{number}", 80) for number in range(1, 30)]
    assert [change.destination for change in diff(Ruleset([(WEB, every)]), Ruleset([(WEB, [])]))] == every


def test_what_has_no_effect_makes_no_difference() -> None:
    """A saved table leaves it out."""
    old = Ruleset(
        [(Service(WEB.key, "rr", netmask=24), [Destination("10.0.0.11", 80, 1, "tunnel", tunnel=Tunnel("ipip", 0, 1))])]
    )
    assert diff(old, Ruleset.parse(old.text())) == []
    assert old == Ruleset.parse(old.text())
    gre = Ruleset([(old[WEB.key].service, [Destination("10.0.0.11", 80, 1, "tunnel", tunnel=Tunnel("gre", 0, 1))])])
    assert len(diff(old, gre)) == 1 and old != gre


def test_a_table_with_what_ipvsadm_has_no_words_for_prints_all_the_same() -> None:
    key = trusted(ServiceKey, Protocol.seen(1), "10.0.0.1", 80, None, Family.INET, bytes(16))
    odd = trusted(Service, key, "rr", 0, 0, 32, None)
    table = Ruleset.of([Entry(WEB, None, []), Entry(odd, None, [])])
    assert "-A -t 10.0.0.1:80 -s rr" in repr(table) and "# service 1/10.0.0.1:80" in repr(table)
    with pytest.raises(ValueError, match="protocol 1"):
        table.text()


def test_a_text_that_names_no_service_is_not_in_a_table() -> None:
    assert "garbage" not in Ruleset() and Ruleset().get("garbage") is None
    with pytest.raises(KeyError, match="garbage"):
        Ruleset()["garbage"]


def made(service: dict[str, Any] | None = None, **destination: Any) -> Ruleset:
    """The table of another program, whose settings the library would refuse or not write."""
    kernel = FakeKernel()
    key = wire.key_values(WEB.key) | (service or {})
    whole = key | {"scheduler": "rr", "flags": (0, 0), "persistence_s": 0, "netmask": 0xFFFFFFFF} | (service or {})
    limits = {"upper_threshold": 0, "lower_threshold": 0}
    there = wire.destination_key("10.0.0.11", 80) | {"method": 0, "weight": 1} | limits | destination
    packed = wire.pack(wire.SERVICE, key)
    kernel.exchange(Command.NEW_SERVICE, wire.pack(wire.COMMAND, {"service": wire.pack(wire.SERVICE, whole)}))
    nested = {"service": packed, "destination": wire.pack(wire.DESTINATION, there)}
    kernel.exchange(Command.NEW_DEST, wire.pack(wire.COMMAND, nested))
    with IPVS(transport=kernel) as ipvs:
        return ipvs.snapshot(statistics=False)


@pytest.mark.parametrize(
    "table",
    [
        made({"netmask": 0x00FFFFFF}),
        made({"netmask": 0}),
        made({"flags": (SvcFlag.ONEPACKET, 0xFF)}),
        made({"flags": (SvcFlag.PERSISTENT, 0xFF)}),
        made(method=2, tunnel_type=0, tunnel_flags=1),
        made(method=2, tunnel_type=0, tunnel_port=9),
        made(method=2, tunnel_type=2, tunnel_flags=3),
        made(method=3, tunnel_type=2),
    ],
)
def test_a_table_and_its_text_are_the_same_whatever_without_effect_is_in_it(table: Ruleset) -> None:
    saved = Ruleset.parse(table.text())
    assert saved == table
    assert diff(table, saved) == diff(saved, table) == []


def test_what_has_an_effect_is_seen() -> None:
    plain = made()
    others = [made({"flags": (1, 1), "persistence_s": 9}), made(weight=2), made(method=2), made(method=3)]
    others += [made(method=2, tunnel_type=2), made(method=2, tunnel_type=2, tunnel_flags=1)]
    for index, other in enumerate(others):
        assert len(diff(plain, other)) == 1
        assert [table == other for table in others] == [place == index for place in range(len(others))]


def test_what_another_program_does_is_a_difference_however_odd() -> None:
    before, after = made(method=3, port=81), made(method=3, port=81, weight=0)
    assert repr(diff(before, after)) == "update destination 10.0.0.11:81 of tcp/10.0.0.1:80 (route, weight 0)"
    assert repr(diff(Ruleset(), after)).endswith("add destination 10.0.0.11:81 to tcp/10.0.0.1:80 (route, weight 0)")
