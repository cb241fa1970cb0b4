"""Values: their text, their order, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given

from pyipvs import (
    Destination,
    Family,
    ForwardingMethod,
    Protocol,
    Service,
    ServiceFlags,
    ServiceKey,
    ServiceStatus,
    Stats,
    Timeouts,
    Tunnel,
    TunnelType,
)
from pyipvs.model import check_pair
from tests.pyipvs.strategies import KEYS, destinations, services

WEB = ServiceKey.parse("tcp/10.0.0.1:80")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("tcp/10.0.0.1:80", ServiceKey(Protocol.TCP, "10.0.0.1", 80)),
        ("udp/[fd00::1]:53", ServiceKey(Protocol.UDP, "fd00::1", 53)),
        ("sctp/10.0.0.1:9", ServiceKey(Protocol.SCTP, "10.0.0.1", 9)),
        ("fwmark/7", ServiceKey.fwmark(7)),
        ("fwmark6/7", ServiceKey.fwmark(7, Family.INET6)),
    ],
)
def test_a_key_is_read_and_written_as_one_text(text: str, key: ServiceKey) -> None:
    assert ServiceKey.parse(text) == key
    assert str(key) == text


def test_a_key_without_protocol_is_tcp() -> None:
    assert ServiceKey.parse("10.0.0.1:80") == WEB


@given(KEYS)
def test_every_key_survives_its_text(key: ServiceKey) -> None:
    assert ServiceKey.parse(str(key)) == key


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("tcp/[FD00:0:0::1]:80", "tcp/[fd00::1]:80"),
        ("TCP/10.0.0.1:080", "tcp/10.0.0.1:80"),
        ("tcp/[::ffff:a00:1]:80", "tcp/[::ffff:10.0.0.1]:80"),  # as inet_ntop, which decodes the kernel's
    ],
)
def test_an_address_becomes_canonical(written: str, canonical: str) -> None:
    assert str(ServiceKey.parse(written)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp",
        "tcp/",
        "tcp/10.0.0.1",
        "tcp/10.0.0.1:",
        "tcp/10.0.0.1:65536",
        "tcp/10.0.0.1:-1",
        "tcp/10.0.0.1:٣",
        "tcp/10.0.0:80",
        "tcp/10.0.0.01:80",
        "tcp/fd00::1:80",
        "tcp/[10.0.0.1]:80",
        "tcp/[fe80::1%lo]:80",
        "tcp/10.0.0.1\0:80",
        "icmp/10.0.0.1:80",
        "fwmark/",
        "fwmark/0",
        "fwmark/4294967296",
        "fwmark/x",
    ],
)
def test_a_bad_key_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        ServiceKey.parse(text)


def test_a_key_is_a_mark_or_an_address_never_both() -> None:
    with pytest.raises(ValueError, match="not both"):
        ServiceKey(Protocol.TCP, "10.0.0.1", 80, mark=7)
    with pytest.raises(ValueError, match="needs protocol"):
        ServiceKey(Protocol.TCP, "10.0.0.1")


def test_keys_sort_by_address_as_a_number_and_marks_come_last() -> None:
    in_order = ["10.0.0.2:80", "udp/10.0.0.2:80", "10.0.0.10:80", "[::1]:80", "fwmark/2", "fwmark/10"]
    keys = [ServiceKey.parse(text) for text in in_order]
    assert sorted(sorted(keys, key=str)) == keys
    assert ServiceKey.parse("10.0.0.1:80") <= WEB


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Service(WEB, scheduler=""), "scheduler"),
        (lambda: Service(WEB, scheduler="a" * 16), "scheduler"),
        (lambda: Service(WEB, scheduler="../rr"), "scheduler"),
        (lambda: Service(WEB, persistence_engine="a" * 16), "persistence_engine"),
        (lambda: Service(WEB, persistence_s=-1), "persistence_s"),
        (lambda: Service(WEB, persistence_s=2**31), "persistence_s"),
        (lambda: Service(WEB, netmask=0), "netmask"),
        (lambda: Service(WEB, netmask=33), "netmask"),
        (lambda: Service(ServiceKey.parse("[fd00::1]:80"), netmask=129), "netmask"),
        (lambda: Service(ServiceKey.parse("10.0.0.1:0")), "persistence_s"),
        (lambda: Destination("10.0.0", 80), "address"),
        (lambda: Destination("0.0.0.0", 80), "address"),
        (lambda: Destination("224.0.0.1", 80), "address"),
        (lambda: Destination("255.255.255.255", 80), "address"),
        (lambda: Destination("::", 80), "address"),
        (lambda: Destination("ff02::1", 80), "address"),
        (lambda: Destination("10.0.0.2", 65536), "port"),
        (lambda: Destination("10.0.0.2", 80, weight=-1), "weight"),
        (lambda: Destination("10.0.0.2", 80, weight=2**31), "weight"),
        (lambda: Destination("10.0.0.2", 80, weight=1.5), "weight"),  # type: ignore[arg-type]
        (lambda: Destination("10.0.0.2", 80, method="fly"), "method"),  # type: ignore[arg-type]
        (lambda: Destination("10.0.0.2", 80, upper_threshold=2**32), "upper_threshold"),
        (lambda: Destination("10.0.0.2", 80, upper_threshold=1, lower_threshold=2), "lower_threshold"),
        (lambda: Destination("10.0.0.2", 80, lower_threshold=1), "lower_threshold"),
        (lambda: Destination("10.0.0.2", 80, tunnel=Tunnel()), "tunnel"),
        (lambda: Tunnel(TunnelType.GUE), "port"),
        (lambda: Tunnel(TunnelType.IPIP, 6080), "port"),
        (lambda: Tunnel(flags=4), "flags"),
        (lambda: Timeouts(tcp_s=-1), "tcp_s"),
        (lambda: Timeouts(udp_s=2**31), "udp_s"),
    ],
)
def test_what_the_kernel_refuses_or_misreads_is_a_value_error_naming_the_field(
    make: Callable[[], object], field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        make()


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        (Destination("10.0.0.2", 8080, method=ForwardingMethod.ROUTE), "port 8080"),
        (Destination("10.0.0.2", 8080, method=ForwardingMethod.TUNNEL), "port 8080"),
        (Destination("fd00::2", 80), "another family"),
        (Destination("fd00::2", 80, method=ForwardingMethod.ROUTE), "another family"),
        (Destination("10.0.0.2", 80, method=ForwardingMethod.LOCAL), "method local"),
    ],
)
def test_a_pair_that_could_not_carry_traffic_is_a_value_error(destination: Destination, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_pair(WEB, destination)


@pytest.mark.parametrize(
    ("key", "destination"),
    [
        (WEB, Destination("10.0.0.2", 8080)),
        (WEB, Destination("fd00::2", 80, method=ForwardingMethod.TUNNEL)),
        (ServiceKey.parse("10.0.0.1:0"), Destination("10.0.0.2", 0, method=ForwardingMethod.ROUTE)),
        (ServiceKey.fwmark(7), Destination("10.0.0.2", 80, method=ForwardingMethod.ROUTE)),
    ],
)
def test_a_pair_that_can_carry_traffic_passes(key: ServiceKey, destination: Destination) -> None:
    check_pair(key, destination)


def test_words_are_lower_case_and_make_their_values() -> None:
    assert f"{ForwardingMethod.ROUTE} {Protocol.SCTP} {TunnelType.GUE}" == "route sctp gue"
    assert Destination("10.0.0.2", 80, method="route").method is ForwardingMethod.ROUTE  # type: ignore[arg-type]
    assert ServiceKey("udp", "10.0.0.1", 53).protocol is Protocol.UDP  # type: ignore[arg-type]


def test_what_we_do_not_know_keeps_its_number_as_name() -> None:
    assert str(Protocol.seen(1)) == "1"
    assert Protocol.seen(1) == 1
    assert Protocol.seen(6) is Protocol.TCP
    assert 1 not in [int(member) for member in Protocol]


def test_a_service_without_netmask_groups_by_whole_addresses() -> None:
    assert Service(WEB).netmask == 32
    assert Service(ServiceKey.parse("[fd00::1]:80")).netmask == 128


def test_scheduler_flags_have_names_for_source_hashing() -> None:
    assert ServiceFlags.SH_FALLBACK is ServiceFlags.SCHED1


def test_configuration_compares_without_counters() -> None:
    quiet, busy = ServiceStatus(Service(WEB), Stats()), ServiceStatus(Service(WEB), Stats(connections=5))
    assert quiet.service == busy.service
    assert quiet != busy


@given(services(), destinations())
def test_values_are_hashable_and_survive_copy_and_pickle(service: Service, destination: Destination) -> None:
    for value in (service, destination):
        for twin in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert twin == value
            assert hash(twin) == hash(value)


@pytest.mark.parametrize("flags", [-1, 1, 2, 0x40, 0x1000, "4", 0x3D])
def test_flags_that_a_caller_cannot_set_are_refused(flags: int) -> None:
    with pytest.raises(ValueError, match="flags"):
        Service(ServiceKey.parse("udp/10.0.0.1:53"), flags=flags)


def test_what_the_kernel_would_not_do_is_refused() -> None:
    for text in ("tcp/10.0.0.1:80", "sctp/10.0.0.1:80"):
        with pytest.raises(ValueError, match="ONE_PACKET"):
            Service(ServiceKey.parse(text), flags=ServiceFlags.ONE_PACKET)
    assert Service(ServiceKey.fwmark(7), flags=0x3C).flags == 0x3C
    for kind in ("ipip", "gre"):
        with pytest.raises(ValueError, match="remote checksum"):
            Tunnel(kind, flags=2)
