"""Serf's protocol without I/O: a real agent's words, every split of them, and everything that is not its words."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusisd.serf import protocol
from fusisd.serf.protocol import COMMANDS, Connection, SerfMisuse, Record, RemoteProtocolError, Reply

TRANSCRIPT = json.loads((Path(__file__).parents[1] / "serf/transcripts/conversation.json").read_text())
RECEIVED = bytes.fromhex(TRANSCRIPT["received"])


def asked() -> Connection:
    """A connection on which the transcript's requests were made."""
    connection = Connection()
    for command, body in TRANSCRIPT["requests"]:
        connection.request(command, body)
    return connection


def whole() -> list[Reply | Record]:
    return asked().receive(RECEIVED)


def replies(command: str) -> list[Reply]:
    return [item for item in whole() if isinstance(item, Reply) and item.command == command]


def test_a_request_is_the_bytes_that_serf_expects() -> None:
    seq, data = Connection().request("handshake", {"Version": 1})
    assert seq == 1
    assert data == b"\x82\xa7Command\xa9handshake\xa3Seq\x01\x81\xa7Version\x01"
    _, data = Connection().request("members")
    assert data == b"\x82\xa7Command\xa7members\xa3Seq\x01"


def test_a_real_agent_s_answers_are_understood() -> None:
    assert [reply.seq for reply in whole() if isinstance(reply, Reply)] == list(range(1, 13))
    first, last = (protocol.members(reply.body) for reply in replies("members"))
    assert {member.name for member in first} == {"n1", "n2"}
    (us,) = [member for member in last if member.name == "n1"]
    assert (us.status, us.tags["s:web"], us.tags["role"]) == ("alive", "80/nat/1", "agent")
    assert "gone" not in us.tags
    assert us.address.startswith("127.7.")


def test_a_tag_that_is_no_utf_8_survives() -> None:
    (us,) = [member for member in protocol.members(replies("members")[0].body) if member.name == "n1"]
    assert us.tags["odd"].encode("utf-8", "surrogateescape") == b"\xff\xfe"


def test_a_failed_join_has_an_error_and_a_body() -> None:
    (join,) = replies("join")
    assert join.error
    assert join.body == {"Num": 0}


def test_the_stream_brings_records_of_its_seq() -> None:
    records = [item for item in whole() if isinstance(item, Record)]
    assert {record.command for record in records} == {"stream"}
    assert {"user", "member-update"} <= {record.body["Event"] for record in records}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1448])
def test_every_split_of_the_bytes_gives_the_same(size: int) -> None:
    connection, found = asked(), []
    for start in range(0, len(RECEIVED), size):
        found += connection.receive(RECEIVED[start : start + size])
    assert found == whole()


@given(st.lists(st.tuples(st.integers(0, len(RECEIVED) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_mutated_words_give_values_or_a_remote_protocol_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(RECEIVED)
    for position, value in changes:
        data[position] = value
    try:
        for item in asked().receive(bytes(data)):
            if isinstance(item, Reply) and item.command == "members" and not item.error:
                protocol.members(item.body)
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=200))
@example(b"\x81\x81\x00\x00\x00")  # a map with a map as its key
@example(b"\xc1")
@example(b"\x91" * 2000)
def test_any_bytes_give_values_or_a_remote_protocol_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        asked().receive(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(["Error", "Seq", "Members", "x"]), values, max_size=4), max_size=6))
def test_any_maps_give_values_or_a_remote_protocol_error(items: list[dict[str, Any]]) -> None:
    try:
        for item in asked().receive(b"".join(msgpack.packb(item) for item in items)):
            protocol.members(item.body)
    except RemoteProtocolError:
        pass


def answer(error: str, seq: int) -> bytes:
    return bytes(msgpack.packb({"Error": error, "Seq": seq}))


def test_an_answer_to_nothing_that_was_asked_breaks_the_connection_for_good() -> None:
    connection = Connection()
    connection.request("members")
    with pytest.raises(RemoteProtocolError):
        connection.receive(answer("", 999))
    with pytest.raises(RemoteProtocolError):
        connection.receive(answer("Authentication required", 1))


def test_an_authentication_error_has_no_body_to_wait_for() -> None:
    connection = Connection()
    connection.request("members")
    assert connection.receive(answer("Authentication required", 1)) == [Reply(1, "members", "Authentication required")]


def test_a_refused_stream_is_over() -> None:
    connection = Connection()
    connection.request("stream", {"Type": "nonsense"})
    assert connection.receive(answer("Invalid event filter", 1)) == [Reply(1, "stream", "Invalid event filter")]
    with pytest.raises(RemoteProtocolError):
        connection.receive(answer("", 1))


@pytest.mark.parametrize(
    ("command", "body"),
    [
        ("nosuch", None),
        ("members", {}),
        ("event", None),
        ("event", {"Nmae": "x"}),
        ("event", {"Name": object()}),
        ("query", {"Timeout": 2**64}),
    ],
)
def test_our_own_misuse_is_a_local_error_and_nothing_is_expected_after_it(command: str, body: dict[str, Any] | None) -> None:
    connection = Connection()
    with pytest.raises(SerfMisuse):
        connection.request(command, body)
    assert connection.request("members")[0] == 1


def test_every_command_s_row_is_whole() -> None:
    assert set(COMMANDS) >= {command for command, _ in TRANSCRIPT["requests"]}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x0a\0\0\x01", "10.0.0.1"),
        (bytes(10) + b"\xff\xff\x0a\0\0\x01", "10.0.0.1"),
        (b"\xfd" + bytes(14) + b"\x01", "fd00::1"),
    ],
)
def test_an_address_may_be_four_sixteen_or_mapped_bytes(raw: bytes, text: str) -> None:
    row = {"Name": "n", "Addr": raw, "Port": 7946, "Tags": None, "Status": "alive"}
    (member,) = protocol.members({"Members": [row]})
    assert (member.address, member.tags) == (text, {})


def test_nil_lists_are_empty() -> None:
    assert protocol.members({"Members": None}) == ()
