"""What any IPVS must do: run on the fake kernel (test_fake.py) and the real one (tests/kernel/test_ipvs.py).

Each test takes the fixture `ipvs`: a handle on an empty table. The last part sends what the library itself
would refuse, so that the fake is known to refuse it as the kernel does.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from pyipvs import (
    IPVS,
    AddDestination,
    AlreadyExists,
    BatchError,
    Destination,
    DestinationNotFound,
    ForwardingMethod,
    Ruleset,
    SchedulerNotFound,
    Service,
    ServiceFlags,
    ServiceKey,
    ServiceNotFound,
    Stats,
    Tunnel,
    TunnelType,
    diff,
    rows,
    wire,
)
from pyipvs.const import Command
from pyipvs.errors import KernelError

WEB = "tcp/10.0.0.1:80"

SERVICES = [
    Service(ServiceKey.parse("tcp/10.0.0.1:80"), scheduler="rr"),
    Service(ServiceKey.parse("udp/10.0.0.1:53"), scheduler="wlc", flags=ServiceFlags.ONE_PACKET),
    Service(ServiceKey.parse("sctp/10.0.0.1:9"), scheduler="wrr"),
    Service(ServiceKey.parse("tcp/[fd00::1]:443"), "sh", ServiceFlags.SH_FALLBACK | ServiceFlags.SH_PORT),
    Service(ServiceKey.parse("tcp/10.0.0.2:0"), scheduler="lc", persistence_s=300, netmask=24),
    Service(ServiceKey.parse("tcp/[fd00::2]:25"), scheduler="lc", persistence_s=60, netmask=64),
    Service(ServiceKey.fwmark(7), scheduler="mh"),
    Service(ServiceKey.parse("fwmark6/8"), scheduler="rr"),
]

DESTINATIONS = [
    (WEB, Destination("10.0.0.11", 8080, weight=3)),
    (WEB, Destination("10.0.0.11", 80, method=ForwardingMethod.ROUTE, weight=0)),
    (WEB, Destination("10.0.0.12", 80, method=ForwardingMethod.TUNNEL)),
    (WEB, Destination("10.0.0.13", 80, method=ForwardingMethod.TUNNEL, tunnel=Tunnel(TunnelType.GUE, 6080))),
    (WEB, Destination("10.0.0.14", 80, method=ForwardingMethod.TUNNEL, tunnel=Tunnel(TunnelType.GRE))),
    (WEB, Destination("10.0.0.15", 80, upper_threshold=100, lower_threshold=80)),
    ("tcp/[fd00::1]:443", Destination("fd00::11", 443, method=ForwardingMethod.ROUTE)),
    ("tcp/[fd00::1]:443", Destination("10.0.0.11", 443, method=ForwardingMethod.TUNNEL)),
]


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: str(service.key))
def test_a_service_comes_back_as_it_was_made(ipvs: IPVS, service: Service) -> None:
    ipvs.add_service(service)
    assert [row.service for row in ipvs.services()] == [service]
    assert ipvs.service(service.key).service == service
    ipvs.delete_service(service.key)
    assert ipvs.services() == []


@pytest.mark.parametrize(("key", "destination"), DESTINATIONS, ids=lambda value: str(value))
def test_a_destination_comes_back_as_it_was_made(ipvs: IPVS, key: str, destination: Destination) -> None:
    ipvs.add_service(key, scheduler="rr")
    ipvs.add_destination(key, destination)
    (row,) = ipvs.destinations(key)
    assert row.destination == destination
    assert (row.active, row.inactive, row.persistent, row.stats) == (0, 0, 0, Stats())
    ipvs.delete_destination(key, destination)
    assert ipvs.destinations(key) == []


def test_all_services_and_destinations_are_in_the_snapshot(ipvs: IPVS) -> None:
    for service in SERVICES:
        ipvs.add_service(service)
    for key, destination in DESTINATIONS:
        ipvs.add_destination(key, destination)
    table = ipvs.snapshot()
    assert {key: entry.service for key, entry in table.items()} == {s.key: s for s in SERVICES}
    seen = {(str(key), row.destination) for key, entry in table.items() for row in entry.status}
    assert seen == set(DESTINATIONS)


def test_a_dump_larger_than_one_message_is_whole(ipvs: IPVS) -> None:
    ipvs.add_service(WEB, scheduler="rr")
    wanted = {f"10.0.{number // 250 + 1}.{number % 250 + 1}" for number in range(500)}
    for address in wanted:
        ipvs.add_destination(WEB, f"{address}:80")
    assert {row.destination.address for row in ipvs.destinations(WEB)} == wanted


def test_destinations_come_newest_first(ipvs: IPVS) -> None:
    ipvs.add_service(WEB)
    for address in ("10.0.0.11", "10.0.0.12", "10.0.0.13"):
        ipvs.add_destination(WEB, f"{address}:80")
    addresses = [row.destination.address for row in ipvs.destinations(WEB)]
    assert addresses == ["10.0.0.13", "10.0.0.12", "10.0.0.11"]


def test_making_a_thing_twice_is_refused(ipvs: IPVS) -> None:
    ipvs.add_service(WEB)
    with pytest.raises(AlreadyExists) as caught:
        ipvs.add_service(WEB)
    assert caught.value.errno == errno.EEXIST
    assert "tcp/10.0.0.1:80" in str(caught.value)
    ipvs.add_destination(WEB, "10.0.0.2:80")
    with pytest.raises(AlreadyExists):
        ipvs.add_destination(WEB, "10.0.0.2:80", weight=5)


def test_a_missing_service_is_said_to_be_missing_by_every_verb(ipvs: IPVS) -> None:
    for verb in (ipvs.service, ipvs.destinations, ipvs.delete_service, ipvs.zero):
        with pytest.raises(ServiceNotFound) as caught:
            verb(WEB)
        assert caught.value.errno == errno.ESRCH
    with pytest.raises(ServiceNotFound):
        ipvs.add_destination(WEB, "10.0.0.2:80")
    with pytest.raises(ServiceNotFound):
        ipvs.update_service(Service(ServiceKey.parse(WEB)))


def test_a_missing_destination_is_said_to_be_missing(ipvs: IPVS) -> None:
    ipvs.add_service(WEB)
    for attempt in (
        lambda: ipvs.delete_destination(WEB, "10.0.0.2:80"),
        lambda: ipvs.update_destination(WEB, Destination("10.0.0.2", 80)),
        lambda: ipvs.update_destination(WEB, "10.0.0.2:80", weight=2),
    ):
        with pytest.raises(DestinationNotFound) as caught:
            attempt()
        assert caught.value.errno == errno.ENOENT


def test_an_unknown_scheduler_is_refused_and_nothing_is_made(ipvs: IPVS) -> None:
    with pytest.raises(SchedulerNotFound):
        ipvs.add_service(WEB, scheduler="nosuch")
    assert ipvs.services() == []


def test_an_update_given_as_text_changes_only_what_it_names(ipvs: IPVS) -> None:
    ipvs.add_service(WEB, scheduler="rr", persistence_s=60)
    ipvs.update_service(WEB, scheduler="wrr")
    assert ipvs.service(WEB).service == Service(ServiceKey.parse(WEB), scheduler="wrr", persistence_s=60)
    gue = Tunnel(TunnelType.GUE, 6080)
    ipvs.add_destination(WEB, Destination("10.0.0.2", 80, 5, ForwardingMethod.TUNNEL, tunnel=gue))
    ipvs.update_destination(WEB, "10.0.0.2:80", weight=7)
    (row,) = ipvs.destinations(WEB)
    assert row.destination == Destination("10.0.0.2", 80, 7, ForwardingMethod.TUNNEL, tunnel=gue)


def test_a_destination_can_leave_method_tunnel(ipvs: IPVS) -> None:
    ipvs.add_service(WEB)
    ipvs.add_destination(WEB, "10.0.0.2:80", method="tunnel", tunnel=Tunnel(TunnelType.GUE, 6080))
    ipvs.update_destination(WEB, "10.0.0.2:80", method="route")
    (row,) = ipvs.destinations(WEB)
    assert row.destination == Destination("10.0.0.2", 80, method=ForwardingMethod.ROUTE)


def test_a_flag_can_be_taken_back(ipvs: IPVS) -> None:
    ipvs.add_service("udp/10.0.0.1:53", scheduler="rr", flags=ServiceFlags.ONE_PACKET)
    ipvs.update_service("udp/10.0.0.1:53", flags=ServiceFlags.NONE)
    assert ipvs.service("udp/10.0.0.1:53").service.flags is ServiceFlags.NONE


def test_a_deleted_service_takes_its_destinations_with_it(ipvs: IPVS) -> None:
    ipvs.add_service(WEB)
    ipvs.add_destination(WEB, "10.0.0.2:80")
    ipvs.delete_service(WEB)
    ipvs.add_service(WEB)
    assert ipvs.destinations(WEB) == []


def test_tables_of_both_families_do_not_mix_firewall_marks(ipvs: IPVS) -> None:
    ipvs.add_service("fwmark/7", scheduler="rr")
    with pytest.raises(ServiceNotFound):
        ipvs.service("fwmark6/7")


def test_persistence_can_be_taken_back(ipvs: IPVS) -> None:
    ipvs.add_service(WEB, persistence_s=60)
    ipvs.update_service(WEB, persistence_s=0)
    assert ipvs.service(WEB).service.persistence_s == 0


def test_timeouts_change_one_by_one(ipvs: IPVS) -> None:
    before = ipvs.timeouts()
    ipvs.set_timeouts(udp_s=17)
    after = ipvs.timeouts()
    assert (after.tcp_s, after.tcp_fin_s, after.udp_s) == (before.tcp_s, before.tcp_fin_s, 17)


def test_info_flush_and_zero(ipvs: IPVS) -> None:
    assert ipvs.info().version == "1.2.1"
    assert ipvs.info().connection_table_size >= 256
    ipvs.add_service(WEB)
    ipvs.zero()
    ipvs.zero(WEB)
    ipvs.flush()
    assert ipvs.services() == []
    ipvs.flush()


def test_a_batch_does_much_at_once_and_names_what_failed(ipvs: IPVS) -> None:
    with pytest.raises(BatchError) as caught, ipvs.batch() as batch:
        batch.add_service(WEB, scheduler="rr")
        batch.add_service(WEB, scheduler="rr")
        batch.add_destination(WEB, "10.0.0.2:80")
        batch.add_destination("tcp/10.0.0.9:80", "10.0.0.2:80")
        batch.add_destination(WEB, "10.0.0.3:80", weight=7)
        batch.delete_destination(WEB, "10.0.0.4:80")
        batch.add_service("tcp/10.0.0.3:80", scheduler="nosuch")
    assert [(type(failure.error), failure.error.errno) for failure in caught.value.failures] == [
        (AlreadyExists, errno.EEXIST),
        (ServiceNotFound, errno.ESRCH),
        (DestinationNotFound, errno.ENOENT),
        (SchedulerNotFound, errno.ENOENT),
    ]
    missing = ServiceKey.parse("tcp/10.0.0.9:80")
    assert caught.value.failures[1].change == AddDestination(missing, Destination("10.0.0.2", 80))
    assert str(caught.value).startswith("4 of 7 changes failed; the others are done\n  add service tcp/10.0.0.1:80:")
    assert {row.destination.weight for row in ipvs.destinations(WEB)} == {1, 7}


def test_a_batch_whose_block_raises_does_nothing(ipvs: IPVS) -> None:
    with pytest.raises(ZeroDivisionError), ipvs.batch() as batch:
        batch.add_service(WEB)
        _ = 1 / 0
    assert ipvs.services() == []


def test_a_large_table_is_made_changed_and_removed(ipvs: IPVS) -> None:
    services = [Service(ServiceKey.parse(f"tcp/10.0.{number}.1:80"), "rr") for number in range(30)]
    hosts = [Destination(f"10.1.{number // 250}.{number % 250 + 1}", 80, number % 7) for number in range(100)]
    table = Ruleset([(service, hosts) for service in services])
    told: list[tuple[int, int]] = []
    ipvs.apply(diff(ipvs.snapshot(), table), lambda done, of: told.append((done, of)))
    assert told[-1] == (3030, 3030)
    assert len(told) > 2
    assert ipvs.snapshot() == ipvs.snapshot(statistics=False) == table
    heavier = Ruleset([(service, [replace(host, weight=9) for host in hosts]) for service in services])
    ipvs.apply(diff(table, heavier))
    assert ipvs.snapshot() == heavier
    ipvs.apply(diff(heavier, Ruleset()))
    assert ipvs.snapshot() == Ruleset()


def test_everything_at_once_comes_back_as_it_was_made(ipvs: IPVS) -> None:
    found = {str(service.key): (service, []) for service in SERVICES}
    for key, destination in DESTINATIONS:
        found[key][1].append(destination)
    table = Ruleset(found.values())
    ipvs.apply(diff(Ruleset(), table))
    assert ipvs.snapshot() == table
    assert Ruleset.parse(ipvs.snapshot().text()) == table


def _send(ipvs: IPVS, command: Command, *, dump: bool = False, **nested: dict[str, Any]) -> list[bytes]:
    tables = {"service": wire.SERVICE, "destination": wire.DESTINATION}
    packed = {name: wire.pack(tables[name], values) for name, values in nested.items()}
    attributes = wire.pack(wire.COMMAND, packed)
    if not dump:
        return ipvs._transport.exchange(command, attributes)
    return [answer for part in ipvs._transport.dump(command, attributes) for answer in rows.split(part)]


KEY = wire.key_values(ServiceKey.parse(WEB))
KEY6 = wire.key_values(ServiceKey.parse("tcp/[fd00::1]:80"))
SERVICE = {"scheduler": "rr", "flags": (0, 0xFFFFFFFF), "persistence_s": 0, "netmask": 0xFFFFFFFF}
HERE = wire.destination_key("10.0.0.2", 80)
DESTINATION = HERE | {"method": 0, "weight": 1, "upper_threshold": 0, "lower_threshold": 0}


@pytest.mark.parametrize(
    ("service", "code"),
    [
        ({}, errno.EINVAL),
        (KEY, errno.EINVAL),
        ({"family": 2, "protocol": 6, "port": 80} | SERVICE, errno.EINVAL),
        (KEY | SERVICE | {"family": 99}, errno.EAFNOSUPPORT),
        (KEY | SERVICE | {"scheduler": "nosuch"}, errno.ENOENT),
        (KEY | SERVICE | {"scheduler": "a" * 16}, errno.EINVAL),
        (KEY | SERVICE | {"persistence_engine": "nosuch"}, errno.ENOENT),
        (KEY6 | SERVICE | {"netmask": 0}, errno.EINVAL),
        (KEY6 | SERVICE | {"netmask": 129}, errno.EINVAL),
        *(({**KEY, **SERVICE, name: None}, errno.EINVAL) for name in SERVICE),
    ],
)
def test_a_bad_service_is_refused_with_an_errno(ipvs: IPVS, service: dict[str, Any], code: int) -> None:
    with pytest.raises(KernelError) as caught:
        _send(ipvs, Command.NEW_SERVICE, service=service)
    assert caught.value.errno == code
    assert ipvs.services() == []


REFUSED = [
    (DESTINATION | {"weight": -1}, errno.ERANGE),
    (DESTINATION | {"upper_threshold": 1, "lower_threshold": 2}, errno.ERANGE),
    (DESTINATION | {"lower_threshold": 1}, errno.ERANGE),
    (DESTINATION | {"method": 2, "tunnel_type": 1, "tunnel_port": 0}, errno.EINVAL),
    (DESTINATION | wire.destination_key("fd00::2", 80), errno.EINVAL),
    *(({**DESTINATION, name: None}, errno.EINVAL) for name in DESTINATION if name != "family"),
]
ADDRESSES = ["0.0.0.0", "224.0.0.1", "255.255.255.255"]


@pytest.mark.parametrize(
    ("destination", "code"),
    [*REFUSED, *((DESTINATION | wire.destination_key(address, 80), errno.EINVAL) for address in ADDRESSES)],
)
def test_a_bad_destination_is_refused_with_an_errno(
    ipvs: IPVS, destination: dict[str, Any], code: int
) -> None:
    ipvs.add_service(WEB)
    with pytest.raises(KernelError) as caught:
        _send(ipvs, Command.NEW_DEST, service=KEY, destination=destination)
    assert caught.value.errno == code
    assert ipvs.destinations(WEB) == []


@pytest.mark.parametrize(("destination", "code"), REFUSED)
def test_a_bad_update_is_refused_and_changes_nothing(
    ipvs: IPVS, destination: dict[str, Any], code: int
) -> None:
    ipvs.add_service(WEB)
    ipvs.add_destination(WEB, "10.0.0.2:80", weight=5)
    with pytest.raises(KernelError) as caught:
        _send(ipvs, Command.SET_DEST, service=KEY, destination=destination)
    assert caught.value.errno == code
    assert ipvs.destinations(WEB)[0].destination == Destination("10.0.0.2", 80, 5)


def test_an_update_overwrites_what_it_leaves_out(ipvs: IPVS) -> None:
    ipvs.add_service(WEB)
    ipvs.add_destination(WEB, "10.0.0.2:80", method="tunnel", tunnel=Tunnel(TunnelType.GUE, 6080))
    _send(ipvs, Command.SET_DEST, service=KEY, destination=DESTINATION | {"method": 2})
    assert ipvs.destinations(WEB)[0].destination.tunnel == Tunnel(TunnelType.IPIP)


def test_a_destination_without_family_has_the_services(ipvs: IPVS) -> None:
    ipvs.add_service(WEB)
    _send(ipvs, Command.NEW_DEST, service=KEY, destination=DESTINATION | {"family": None})
    assert ipvs.destinations(WEB)[0].destination == Destination("10.0.0.2", 80)


def test_the_kernel_takes_what_the_library_refuses_and_it_can_be_read_and_deleted(ipvs: IPVS) -> None:
    _send(ipvs, Command.NEW_SERVICE, service=KEY | SERVICE | {"protocol": 1})
    (status,) = ipvs.services()
    assert str(status.service.key) == "1/10.0.0.1:80"
    ipvs.delete_service(status.service.key)
    ipvs.add_service(WEB)
    _send(ipvs, Command.NEW_DEST, service=KEY, destination=DESTINATION | {"method": 7})
    assert str(ipvs.destinations(WEB)[0].destination.method) == "7"


def test_a_scheduler_named_none_is_no_scheduler(ipvs: IPVS) -> None:
    ipvs.add_service(WEB, scheduler="none")
    assert ipvs.service(WEB).service.scheduler == "none"


def test_a_dump_for_no_service_is_an_empty_success(ipvs: IPVS) -> None:
    assert _send(ipvs, Command.GET_DEST, dump=True, service=KEY) == []
    assert _send(ipvs, Command.GET_DEST, dump=True) == []


def test_destinations_cannot_be_asked_for_one_by_one(ipvs: IPVS) -> None:
    with pytest.raises(KernelError) as caught:
        _send(ipvs, Command.GET_DEST, service=KEY, destination=HERE)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_the_service_is_looked_for_before_the_destination_is_read(ipvs: IPVS) -> None:
    for command in (Command.NEW_DEST, Command.SET_DEST, Command.DEL_DEST):
        with pytest.raises(KernelError) as caught:
            _send(ipvs, command, service=KEY, destination={})
        assert caught.value.errno == errno.ESRCH
