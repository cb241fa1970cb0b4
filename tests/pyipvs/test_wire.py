"""Attributes: literal bytes once per kind, then round trips, then any bytes at all.

The expected bytes are those of a little-endian machine; big-endian ones skip the literal tests.
"""

from __future__ import annotations

import contextlib
import struct
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyipvs import (
    Daemon,
    DaemonState,
    DecodeError,
    Destination,
    DestinationStatus,
    Family,
    ForwardingMethod,
    Service,
    ServiceFlags,
    ServiceKey,
    Stats,
    Timeouts,
    Tunnel,
    TunnelType,
    daemons,
    rows,
    wire,
)
from tests.pyipvs.strategies import destinations, services

little_endian = pytest.mark.skipif(sys.byteorder == "big", reason="literal bytes of a little-endian machine")

WEB = ServiceKey.parse("tcp/10.0.0.1:80")
WEB_BYTES = (
    "30000180"  # SERVICE, nested, 48 bytes
    "06000100" "02000000"  # AF: AF_INET
    "06000200" "06000000"  # PROTOCOL: TCP
    "14000300" "0a000001" + "00" * 12 +  # ADDR: 10.0.0.1, filled up to 16 bytes
    "06000400" "00500000"  # PORT: 80 in network order
)  # fmt: skip


def decode_destination(data: bytes, family: Family) -> DestinationStatus:
    return rows.status(rows.decode(data, family))


def _attribute(number: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, number) + data + bytes(-len(data) % 4)


@little_endian
def test_a_key_in_bytes() -> None:
    assert wire.encode_key(WEB).hex() == WEB_BYTES


@little_endian
def test_a_firewall_mark_in_bytes() -> None:
    assert wire.encode_key(ServiceKey.fwmark(7, Family.INET6)).hex() == (
        "14000180"
        "06000100" "0a000000"  # AF: AF_INET6
        "08000500" "07000000"  # FWMARK
    )  # fmt: skip


@little_endian
def test_a_service_in_bytes() -> None:
    service = Service(WEB, "rr", ServiceFlags.SCHED1, 300, 24, "sip")
    assert wire.encode_service(service).hex() == (
        "5c000180" + WEB_BYTES[8:] +
        "07000600" "72720000"  # SCHED_NAME: rr and NUL
        "08000b00" "73697000"  # PE_NAME: sip and NUL
        "0c000700" "09000000" "3d000000"  # FLAGS: PERSISTENT | SCHED1, of the five that we set
        "08000800" "2c010000"  # TIMEOUT: 300 s
        "08000900" "ffffff00"  # NETMASK: 255.255.255.0 in network order
    )  # fmt: skip


@little_endian
def test_an_ipv6_netmask_is_a_prefix_length() -> None:
    encoded = wire.encode_service(Service(ServiceKey.parse("[fd00::1]:80"), netmask=64))
    assert encoded.hex().endswith("08000900" "40000000")


@little_endian
def test_a_destination_in_bytes() -> None:
    gue = Tunnel(TunnelType.GUE, 6080, 1)
    destination = Destination("10.0.0.2", 80, 5, ForwardingMethod.TUNNEL, 9, 3, gue)
    assert wire.encode_destination(WEB, destination).hex() == (
        WEB_BYTES +
        "60000280"  # DEST, nested, 96 bytes
        "14000100" "0a000002" + "00" * 12 +  # ADDR
        "06000200" "00500000"  # PORT: network order
        "08000300" "02000000"  # FWD_METHOD: tunnel
        "08000400" "05000000"  # WEIGHT
        "05000d00" "01000000"  # TUN_TYPE: GUE
        "06000e00" "17c00000"  # TUN_PORT: 6080 in network order
        "06000f00" "01000000"  # TUN_FLAGS: checksum
        "08000500" "09000000"  # U_THRESH
        "08000600" "03000000"  # L_THRESH
        "06000b00" "02000000"  # ADDR_FAMILY: AF_INET
    )  # fmt: skip


@little_endian
def test_a_destinations_name_in_bytes() -> None:
    assert wire.encode_destination_key(WEB, "10.0.0.2", 80).hex() == (
        WEB_BYTES + "28000280" "14000100" "0a000002" + "00" * 12 + "06000200" "00500000" "06000b00" "02000000"
    )  # fmt: skip


@little_endian
def test_timeouts_in_bytes() -> None:
    encoded = wire.encode_timeouts(Timeouts(1, 2, 3))
    assert encoded.hex() == "0800040001000000" "0800050002000000" "0800060003000000"


@little_endian
def test_info_from_bytes() -> None:
    info = wire.decode_info(bytes.fromhex("0800010001020100" "0800020000100000"))
    assert (info.version, info.connection_table_size) == ("1.2.1", 4096)


@given(services())
def test_a_service_survives_encoding_and_decoding(service: Service) -> None:
    status = wire.decode_service(wire.encode_service(service))
    assert status.service == service
    assert status.stats == Stats()


@given(destinations())
def test_a_destination_survives_encoding_and_decoding(destination: Destination) -> None:
    status = decode_destination(wire.encode_destination(WEB, destination), Family.INET)
    assert status.destination == destination


COUNTERS = st.fixed_dictionaries({attr.field: st.integers(0, 2**64 - 1) for attr in wire.STATS64})


@given(COUNTERS)
def test_counters_are_read_in_full_width(counters: dict[str, int]) -> None:
    wrong = wire.pack(wire.STATS, dict.fromkeys(counters, 1))
    right = wire.pack(wire.STATS64, counters)
    values = wire.destination_key("10.0.0.2", 80) | {"method": 0, "weight": 1, "stats": wrong, "stats64": right}
    message = wire.pack(wire.COMMAND, {"destination": wire.pack(wire.DESTINATION, values)})
    assert decode_destination(message, Family.INET).stats == Stats(**counters)


def test_counters_of_a_kernel_without_the_wide_ones_are_read_too() -> None:
    stats = wire.pack(wire.STATS, {"connections": 3, "bytes_in": 2**40})
    values = wire.destination_key("10.0.0.2", 80) | {"method": 0, "weight": 1, "stats": stats}
    message = wire.pack(wire.COMMAND, {"destination": wire.pack(wire.DESTINATION, values)})
    assert decode_destination(message, Family.INET).stats == Stats(connections=3, bytes_in=2**40)


def test_padding_and_unknown_attributes_are_skipped() -> None:
    pad = _attribute(11, b"")  # before each u64 where the machine cannot read unaligned ones
    wide = b"".join(pad + _attribute(number, struct.pack("=Q", number)) for number in range(1, 11))
    assert wire.unpack(wire.STATS64, wide + _attribute(99, b"new")) == {
        attr.field: attr.number for attr in wire.STATS64
    }


def test_the_flag_of_nested_attributes_may_be_missing_as_in_the_kernels_answers() -> None:
    message = _attribute(1, wire.pack(wire.SERVICE, wire.key_values(WEB)))
    assert wire.service_key(wire.unpack(wire.SERVICE, wire.unpack(wire.COMMAND, message)["service"])) == WEB


def test_the_family_of_the_service_stands_in_for_a_destinations() -> None:
    values = {"address": b"\x0a\0\0\2", "port": 80, "method": 0, "weight": 1}
    message = wire.pack(wire.COMMAND, {"destination": wire.pack(wire.DESTINATION, values)})
    assert decode_destination(message, Family.INET).destination.key == ("10.0.0.2", 80)


def test_oddities_that_other_programs_made_are_shown_by_number() -> None:
    odd = wire.key_values(WEB) | {"protocol": 1, "netmask": 0, "flags": (0, 0), "scheduler": "rr"}
    message = wire.pack(wire.COMMAND, {"service": wire.pack(wire.SERVICE, odd)})
    assert str(wire.decode_service(message).service.key) == "1/10.0.0.1:80"
    values = wire.destination_key("10.0.0.2", 80) | {"method": 7, "weight": 1}
    message = wire.pack(wire.COMMAND, {"destination": wire.pack(wire.DESTINATION, values)})
    assert str(decode_destination(message, Family.INET).destination.method) == "7"


def test_a_name_that_is_no_text_is_shown_by_its_bytes() -> None:
    """An interface of a sync daemon may have any."""
    message = _attribute(3, _attribute(1, struct.pack("=I", 1)) + _attribute(2, b"eth\xff\0"))
    assert daemons.decode(message).interface == r"eth\xff"


@pytest.mark.parametrize(
    "bad",
    [
        "",  # no service at all
        "03000100",  # a length below the header's
        "09000100" "00000000",  # a length beyond the end
        "0400",  # half a header
        "04000100" "00",  # a byte after the last attribute
        "0a000100" "05000100" "02000000",  # AF of one byte
        "0c000100" "06000100" "63000000",  # AF 99
        "0c000100" "06000100" "02000000",  # no protocol
    ],
)  # fmt: skip
def test_a_bad_service_is_a_decode_error(bad: str) -> None:
    with pytest.raises(DecodeError):
        wire.decode_service(bytes.fromhex(bad))


def test_an_address_too_short_for_its_family_is_a_decode_error() -> None:
    others = wire.pack(wire.DESTINATION, {"port": 80, "method": 0, "weight": 1})
    message = wire.pack(wire.COMMAND, {"destination": _attribute(1, b"\x0a\0") + others})
    with pytest.raises(DecodeError, match="address of 2 bytes"):
        decode_destination(message, Family.INET)


def _attributes(depth: int = 3) -> st.SearchStrategy[bytes]:
    """Attribute soup: well-formed headers, any numbers, nested and not."""
    value = st.binary(max_size=20) | (_attributes(depth - 1) if depth else st.nothing())
    return st.lists(st.builds(_attribute, st.integers(0, 20), value), max_size=8).map(b"".join)


@given(st.binary(max_size=200) | _attributes())
@example(b"\x04\x00\x01\x00")
def test_any_bytes_decode_to_a_value_or_raise_decode_error(data: bytes) -> None:
    for decode in (
        wire.decode_service,
        lambda data: decode_destination(data, Family.INET6),
        wire.decode_timeouts,
        wire.decode_info,
        daemons.decode,
    ):
        with contextlib.suppress(DecodeError):
            repr(decode(data))


def _chosen(low: int, high: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(low, high)


@given(
    st.sampled_from(DaemonState),
    st.from_regex(r"[a-z0-9.-]{1,15}", fullmatch=True),
    st.integers(0, 255),
    _chosen(1, 65535),
    st.none() | st.ip_addresses(network="224.0.0.0/4").map(str) | st.ip_addresses(network="ff00::/8").map(str),
    _chosen(1, 65535),
    _chosen(1, 255),
)
def test_a_daemon_survives_encoding_and_decoding(
    state: DaemonState, name: str, sync_id: int, length: int | None, group: str | None, port: int | None, ttl: int | None
) -> None:
    daemon = Daemon(state, name, sync_id, length, group, port, ttl)
    assert daemons.decode(daemons.encode(daemon)) == daemon
