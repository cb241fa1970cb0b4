"""Rows: the quick way and the walk give the same, whatever the kernel's shape; objects come back as they were."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyipvs import DecodeError, Destination, Family, ServiceKey, Stats, rows, wire
from pyipvs.framing import request
from pyipvs.layout import Layout, Packed
from tests.pyipvs.strategies import destinations

KEY = ServiceKey.parse("tcp/10.0.0.1:80")
NUMBERS = st.integers(0, 2**32 - 1)
COUNTED = st.fixed_dictionaries({attr.field: st.integers(0, 2**64 - 1) for attr in wire.STATS64})


def message(destination: Destination, counted: dict[str, int], pad: bool = False, **more: int) -> bytes:
    """What a kernel sends; `pad`: one without unaligned access, which puts an empty attribute before 64-bit values."""
    stats = b"".join(
        (struct.pack("=HH", 4, 11) if pad else b"") + wire.pack(wire.STATS64, {name: value})
        for name, value in counted.items()
    )
    tunnel = destination.tunnel
    values = {
        "address": destination.packed,
        "port": destination.port,
        "method": destination.method,
        "weight": destination.weight,
        "tunnel_type": tunnel.type if tunnel else 0,
        "tunnel_port": tunnel.port if tunnel else 0,
        "tunnel_flags": tunnel.flags if tunnel else 0,
        "upper_threshold": destination.upper_threshold,
        "lower_threshold": destination.lower_threshold,
        "family": destination.family,
        "stats": b"",
        "stats64": stats,
        "active": 0,
        "inactive": 0,
        "persistent": 0,
        **more,
    }
    return request(5, wire.pack(wire.COMMAND, {"destination": wire.pack(wire.DESTINATION, values)}), 0, 28, 1, 0)


@given(st.lists(st.tuples(destinations(), COUNTED, NUMBERS), min_size=1, max_size=8), st.booleans())
def test_the_quick_way_gives_what_the_walk_gives(
    sent: list[tuple[Destination, dict[str, int], int]], pad: bool
) -> None:
    data = memoryview(b"".join(message(each, counted, pad, active=active) for each, counted, active in sent))
    for fields in (rows.FIELDS, rows.CONFIGURED):
        quick = rows.Reader().rows(data, Family.INET, fields)
        assert list(quick) == [rows.decode(attributes, Family.INET, fields) for attributes in rows.split(data)]
        assert [rows.destination(row) for row in quick] == [each for each, _, _ in sent]
        assert list(rows.configured(quick)) == list(rows.configured(list(quick))) == [rows.of(each) for each, _, _ in sent]
    full = rows.Reader().rows(data, Family.INET)
    assert [(row.stats, row.active) for row in map(rows.status, full)] == [(Stats(**c), active) for _, c, active in sent]


def test_the_quick_way_is_taken() -> None:
    """A Layout that never fits would be right and slow: it fits every message of one kernel."""
    counted = dict.fromkeys((attr.field for attr in wire.STATS64), 7)
    one = message(Destination("10.0.0.2", 80, 3), counted)
    tables = {"": wire.COMMAND, "destination": wire.DESTINATION, "stats64": wire.STATS64}
    layout = Layout(one, tables, rows.FIELDS)
    assert layout.fields == rows.FIELDS
    other = message(Destination("fd00::1", 81, 0, "tunnel", 5, 4), dict.fromkeys(counted, 2**40), active=9)
    assert layout.rows(memoryview(one + other)) is not None
    assert layout.rows(memoryview((one + other) * 48)) is not None
    assert layout.packed(memoryview((one + other) * 48)) is not None


@pytest.mark.parametrize("at", (0, 15, 16, 40))
def test_one_message_of_another_shape_is_found_wherever_it_stands(at: int) -> None:
    """The messages are compared some at a time."""
    counted = dict.fromkeys((attr.field for attr in wire.STATS64), 7)
    every = [message(Destination("10.0.0.2", port, 3), counted) for port in range(1, 42)]
    padded = message(Destination("10.0.0.9", 99, 3), counted, pad=True)
    data = memoryview(b"".join(every[:at] + [padded] + every[at:]))
    reader = rows.Reader()
    reader.rows(memoryview(every[0]), Family.INET, rows.CONFIGURED)  # learns the other shape
    found = [rows.destination(row) for row in reader.rows(data, Family.INET, rows.CONFIGURED)]
    assert [one.port for one in found] == [*range(1, at + 1), 99, *range(at + 1, 42)]


def test_rows_kept_as_bytes_are_a_sequence() -> None:
    counted = dict.fromkeys((attr.field for attr in wire.STATS64), 7)
    sent = [Destination(address, 80, 3) for address in ("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5")]
    reader = rows.Reader()
    data = [memoryview(message(each, counted)) for each in sent]
    parts = [reader.rows(each, Family.INET, rows.CONFIGURED) for each in data]
    packed = rows.joined(parts)
    wanted = list(map(rows.of, sent))
    assert isinstance(packed, Packed) and len(packed) == 4
    assert (list(packed), packed[0], packed[-1], packed[1:3]) == (wanted, wanted[0], wanted[-1], wanted[1:3])
    with pytest.raises(IndexError):
        packed[4]
    assert rows.joined([*parts[:3], [wanted[3]]]) == wanted
    assert rows.joined([]) == []


@pytest.mark.parametrize("at", range(0, 60, 4))
def test_a_message_of_another_shape_is_walked(at: int) -> None:
    counted = dict.fromkeys((attr.field for attr in wire.STATS64), 7)
    one = message(Destination("10.0.0.2", 80, 3), counted)
    reader = rows.Reader()
    expected = reader.rows(memoryview(one), Family.INET)
    other = bytearray(one)
    other[at] ^= 0x55
    with contextlib.suppress(DecodeError, struct.error):
        both = reader.rows(memoryview(one + bytes(other)), Family.INET)
        assert both[0] == expected[0]


def test_a_message_that_does_not_end_on_four_bytes_is_no_shape() -> None:
    """The next one begins after padding, where no layout of one length would look."""
    odd = struct.pack("=IHHIIBBH", 25, 28, 2, 1, 0, 5, 1, 0) + struct.pack("=HHB", 5, 99, 0)
    with pytest.raises(struct.error, match="25 bytes"):
        Layout(odd, {"": wire.COMMAND}, rows.FIELDS)


def test_a_kernel_that_knows_less_is_read_too() -> None:
    """Old kernels send no tunnel types, no 64-bit counters and no family of a destination."""
    stats = wire.pack(wire.STATS, {"connections": 3})
    values = {"address": b"\x0a\0\0\2", "port": 80, "method": 0, "weight": 5, "stats": stats}
    data = request(5, wire.pack(wire.COMMAND, {"destination": wire.pack(wire.DESTINATION, values)}), 0, 28, 1, 0)
    (row,) = rows.Reader().rows(memoryview(data), Family.INET)
    assert rows.status(row).destination == Destination("10.0.0.2", 80, 5)
    assert rows.status(row).stats == Stats(connections=3)
    (row,) = rows.Reader().rows(memoryview(data), Family.INET, rows.CONFIGURED)
    assert rows.destination(row) == Destination("10.0.0.2", 80, 5)


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_raise_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        rows.status(rows.decode(data, Family.INET))
    whole = struct.pack("=IHHIIBBH", 20 + len(data), 28, 0, 1, 0, 5, 1, 0) + data
    with contextlib.suppress(DecodeError):
        rows.Reader().rows(memoryview(whole), Family.INET)


def test_a_kernel_whose_family_has_another_number_is_read_as_quickly() -> None:
    """After ip_vs was unloaded and loaded again."""
    one = message(Destination("10.0.0.2", 80, 3), dict.fromkeys((attr.field for attr in wire.STATS64), 7))
    other = bytearray(one)
    other[4] += 1
    tables = {"": wire.COMMAND, "destination": wire.DESTINATION, "stats64": wire.STATS64}
    assert Layout(one, tables, rows.FIELDS).rows(memoryview(one + bytes(other))) is not None


def test_attributes_of_a_newer_kernel_are_skipped_at_every_level() -> None:
    new = struct.pack("=HHI", 8, 99, 7)
    values = {"address": bytes([10, 0, 0, 2]) + bytes(12), "port": 80, "method": 0, "weight": 5, "family": 2}
    of_destination = wire.pack(wire.DESTINATION, values)
    keyed = wire.key_values(KEY) | {"scheduler": "rr", "flags": (2, 2**32 - 1), "netmask": 2**32 - 1}
    of_service = wire.pack(wire.SERVICE, keyed)
    for level in range(3):
        before, after = (new if level == number else b"" for number in (0, 1))
        data = wire.pack(wire.COMMAND, {"destination": before + of_destination + after}) + (new if level == 2 else b"")
        for fields in (rows.FIELDS, rows.CONFIGURED):
            (row,) = rows.Reader().rows(memoryview(request(5, data, 0, 28, 1, 0)), Family.INET, fields)
            assert rows.destination(row) == Destination("10.0.0.2", 80, 5)
        data = (new if level == 2 else b"") + wire.pack(wire.COMMAND, {"service": before + of_service + after})
        (status,) = rows.Reader().services(memoryview(request(1, data, 0, 28, 1, 0)))
        assert (status.service.key, status.service.scheduler) == (KEY, "rr")


@pytest.mark.parametrize("missing", ["weight", "method"])
def test_a_destination_without_what_every_kernel_sends_is_a_decode_error(missing: str) -> None:
    values = {"address": bytes(16), "port": 80, "method": 0, "weight": 5, "family": 2}
    del values[missing]
    data = request(5, wire.pack(wire.COMMAND, {"destination": wire.pack(wire.DESTINATION, values)}), 0, 28, 1, 0)
    for fields in (rows.FIELDS, rows.CONFIGURED):
        with pytest.raises(DecodeError, match=missing):
            rows.Reader().rows(memoryview(data), Family.INET, fields)


@pytest.mark.parametrize("missing", ["scheduler", "flags"])
def test_a_service_without_what_every_kernel_sends_is_a_decode_error(missing: str) -> None:
    values = wire.key_values(KEY) | {"scheduler": "rr", "flags": (2, 2**32 - 1)}
    del values[missing]
    data = request(1, wire.pack(wire.COMMAND, {"service": wire.pack(wire.SERVICE, values)}), 0, 28, 1, 0)
    with pytest.raises(DecodeError, match=missing):
        list(rows.Reader().services(memoryview(data)))
