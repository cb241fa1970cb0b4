"""Messages from struct templates are byte for byte those of wire.py's tables."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyipvs import (
    AddDestination,
    AddService,
    DeleteDestination,
    DeleteService,
    Destination,
    Service,
    ServiceKey,
    UpdateDestination,
    UpdateService,
    wire,
)
from pyipvs.changes import Change
from pyipvs.framing import ANSWER_HEADER, NLM_F_ACK, NLM_F_REQUEST, messages
from pyipvs.writer import Writer
from tests.pyipvs.strategies import KEYS, destinations, services


def written(*changes: Change) -> list[tuple[int, bytes]]:
    """(command, attributes) of each message."""
    writer = Writer()
    count, size = writer.write(changes, len(changes), 28, 7)
    assert count == len(changes)
    data = writer.buffer[:size]
    found = list(messages(data))
    assert [(message.kind, message.sequence) for message in found] == [(28, 7 + index) for index in range(count)]
    flags = [int.from_bytes(data[message.at + 6 : message.at + 8], "little") for message in found]
    assert flags == [NLM_F_REQUEST] * (count - 1) + [NLM_F_REQUEST | NLM_F_ACK]
    return [(data[message.at + 16], bytes(data[message.at + ANSWER_HEADER : message.end])) for message in found]


@given(services())
def test_services(service: Service) -> None:
    encoded = wire.encode_service(service)
    assert written(AddService(service), UpdateService(service), DeleteService(service.key)) == [
        (1, encoded),
        (2, encoded),
        (3, wire.encode_key(service.key)),
    ]


@given(KEYS, destinations())
def test_destinations(key: ServiceKey, destination: Destination) -> None:
    encoded = wire.encode_destination(key, destination)
    changes = [_unchecked(kind, key, destination) for kind in (AddDestination, UpdateDestination, DeleteDestination)]
    named = wire.encode_destination_key(key, destination.address, destination.port)
    assert written(*changes) == [(5, encoded), (6, encoded), (7, named)]


def _unchecked(kind: type, key: ServiceKey, destination: Destination) -> Change:
    """Of any pair, sensible or not."""
    return wire.trusted(kind, key, destination)


@given(st.lists(st.tuples(KEYS, destinations()), min_size=2, max_size=5))
def test_services_do_not_mix(pairs: list[tuple[ServiceKey, Destination]]) -> None:
    changes = [_unchecked(AddDestination, key, destination) for key, destination in pairs]
    assert [data for _, data in written(*changes)] == [wire.encode_destination(*pair) for pair in pairs]


def test_a_full_buffer_ends_the_part() -> None:
    key, destination = ServiceKey.parse("tcp/10.0.0.1:80"), Destination("10.0.0.2", 80)
    writer = Writer()
    count, size = writer.write([AddDestination(key, destination)] * 3000, 3000, 28, 1)
    assert count == 1000
    assert size <= len(writer.buffer)
    assert writer.write([AddDestination(key, destination)] * 10, 4, 28, 1)[0] == 4


def test_a_small_send_buffer_makes_small_parts() -> None:
    key, destination = ServiceKey.parse("tcp/10.0.0.1:80"), Destination("10.0.0.2", 80)
    writer = Writer(4576)  # of the smallest SO_SNDBUF that the kernel allows
    count, size = writer.write([AddDestination(key, destination)] * 3000, 3000, 28, 1)
    assert 0 < count < 3000 and size <= 4576
