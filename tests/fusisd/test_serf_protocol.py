"""Serf's protocol without I/O: real agents' words, every split of them, and everything that is not their words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusisd.serf import values
from fusisd.serf.errors import SerfError, SerfMisuse, SerfProtocolError
from fusisd.serf.messages import COMMANDS, Body
from fusisd.serf.protocol import MAX_OBJECT, Connection, Record, Reply
from tests.fuzz.targets import understood
from tests.serf.record import KEYS
from tests.serf.recorded import TRANSCRIPTS, Transcript

EVERYTHING, UNAUTHENTICATED, BARE = (TRANSCRIPTS[name] for name in ("everything", "unauthenticated", "bare"))
each_transcript = pytest.mark.parametrize("transcript", TRANSCRIPTS.values(), ids=list(TRANSCRIPTS))


def greeted() -> Connection:
    """A connection after its handshake; the next Seq is 2."""
    connection = Connection()
    connection.request("handshake", {"Version": 1})
    connection.receive(header("", 1))
    return connection


def header(error: str, seq: int) -> bytes:
    return bytes(msgpack.packb({"Error": error, "Seq": seq}))


def body(**fields: object) -> bytes:
    return bytes(msgpack.packb(fields))


def test_a_request_is_the_bytes_that_serf_expects() -> None:
    connection = Connection()
    seq, data = connection.request("handshake", {"Version": 1})
    assert seq == 1
    assert data == b"\x82\xa7Command\xa9handshake\xa3Seq\x01\x81\xa7Version\x01"
    _, data = connection.request("members")
    assert data == b"\x82\xa7Command\xa7members\xa3Seq\x02"


def test_every_command_was_tried_on_a_real_agent() -> None:
    assert {command for command, _ in EVERYTHING.requests} == COMMANDS.keys()


@each_transcript
def test_every_request_has_one_answer_in_order(transcript: Transcript) -> None:
    replies = [item for item in transcript.items() if isinstance(item, Reply)]
    assert [(reply.seq, reply.command) for reply in replies] == [
        (seq, command) for seq, (command, _) in enumerate(transcript.requests, 1)
    ]


def test_members_are_understood_with_a_tag_that_is_no_utf_8() -> None:
    first, last = (values.members(reply.body) for reply in EVERYTHING.replies("members"))
    assert {member.name for member in first} == {"n1", "n2"}
    (us,) = last
    assert (us.status, us.tags["s:web"], us.tags["role"]) == ("alive", "80/nat/1", "agent")
    assert "gone" not in us.tags
    assert us.address.startswith("127.7.")
    assert us.tags["odd"].encode("utf-8", "surrogateescape") == b"\xff\xfe"


def test_a_refusal_has_the_agent_s_words_and_what_came_with_them() -> None:
    refused, done = EVERYTHING.replies("join")
    assert refused.error and refused.body == {"Num": 0}
    assert values.joined(done.body) == 1
    in_use, removed = EVERYTHING.replies("remove-key")
    assert in_use.error.endswith("nodes reported failure")
    assert values.keys(in_use.body).errors == 2
    assert (removed.error, values.keys(removed.body).nodes) == ("", 2)
    (no_keys,) = BARE.replies("list-keys")
    assert no_keys.error
    report = values.keys(no_keys.body)
    assert (report.keys, report.errors) == ({}, 1)
    assert report.messages, "the node says why"
    assert values.keys(EVERYTHING.replies("list-keys")[0].body).keys.keys() == set(KEYS)


def test_a_key_is_not_printed() -> None:
    assert "MDEy" not in repr(values.keys(EVERYTHING.replies("list-keys")[0].body))


def test_statistics_and_coordinates_are_understood() -> None:
    assert values.stats(EVERYTHING.replies("stats")[0].body)["agent"]["name"] == "n1"
    known, unknown = EVERYTHING.replies("get-coordinate")
    found = values.coordinate(known.body)
    assert found is not None and len(found.vector) == 8
    assert values.coordinate(unknown.body) is None


def test_a_stream_brings_every_kind_of_event() -> None:
    events = [values.event(record.body) for record in EVERYTHING.records("stream")]
    assert {event.kind for event in events if isinstance(event, values.MemberEvent)} >= {
        "member-update",
        "member-failed",
        "member-reap",
    }
    (user,) = [event for event in events if isinstance(event, values.UserEvent)]
    assert (user.name, user.payload, user.coalesce) == ("fusis", b"", False)
    (query,) = [event for event in events if isinstance(event, values.QueryEvent)]
    assert (query.name, query.payload) == ("load", b"all")


def test_a_query_brings_acks_a_response_and_its_end() -> None:
    answers = [values.answer(record.body) for record in EVERYTHING.records("query")]
    assert {answer.sender for answer in answers if isinstance(answer, values.QueryAck)} == {"n1", "n2"}
    assert values.QueryResponse("n1", b"0.5") in answers
    assert answers[-1] == values.QueryDone()
    first, second = EVERYTHING.replies("respond")
    assert not first.error and "already sent" in second.error


def test_a_log_line_is_text() -> None:
    assert all(values.log_line(record.body).text for record in EVERYTHING.records("monitor"))
    assert [reply.error for reply in EVERYTHING.replies("monitor")][1].startswith("Unknown log level")


def test_an_agent_that_does_not_know_us_refuses_without_bodies_and_the_connection_lives() -> None:
    refused = [item for item in UNAUTHENTICATED.items() if isinstance(item, Reply) and item.error]
    assert {reply.error for reply in refused} == {"Authentication required", "Invalid authentication token"}
    assert all(not reply.body for reply in refused)
    assert len(values.members(UNAUTHENTICATED.replies("members")[1].body)) == 1


def test_what_was_on_its_way_when_a_stream_was_stopped_is_nobody_s() -> None:
    connection = greeted()
    connection.request("stream", {"Type": "*"})
    connection.request("stop", {"Stop": 2})
    connection.receive(header("", 2))
    record = header("", 2) + body(Event="user", Name="x")
    assert [type(item) for item in connection.receive(record + header("", 3))] == [Record, Reply]
    assert connection.receive(record * 3) == []


def test_after_its_end_a_query_s_seq_means_nothing() -> None:
    connection = greeted()
    connection.request("query", {"Name": "q"})
    assert len(connection.receive(header("", 2) * 2 + body(Type="done"))) == 2
    with pytest.raises(SerfProtocolError):
        connection.receive(header("", 2))


@each_transcript
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1448])
def test_every_split_of_the_bytes_gives_the_same(transcript: Transcript, size: int) -> None:
    connection, found = transcript.asked(), []
    for start in range(0, len(transcript.received), size):
        found += connection.receive(transcript.received[start : start + size])
    assert found == transcript.items()


@each_transcript
def test_cut_off_anywhere_it_says_what_was_whole(transcript: Transcript) -> None:
    whole = transcript.items()
    for end in range(0, len(transcript.received), 5):
        found = transcript.asked().receive(transcript.received[:end])
        assert found == whole[: len(found)]


@given(
    st.sampled_from(list(TRANSCRIPTS.values())),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_mutated_words_give_values_or_a_protocol_error(transcript: Transcript, changes: list[tuple[float, int]]) -> None:
    data = bytearray(transcript.received)
    for place, value in changes:
        data[int(place * len(data))] = value
    with contextlib.suppress(SerfProtocolError):
        understood(transcript.asked().receive(bytes(data)))


@given(st.binary(max_size=200))
@example(b"\x81\x81\x00\x00\x00")  # a map with a map as its key
@example(b"\xc1")
@example(b"\x91" * 2000)
@example(b"\xd6\xff\x00\x00\x00\x00")  # msgpack's time
@example(b"\xc7\x01\x05\x00")  # an extension
def test_any_bytes_give_values_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(SerfProtocolError):
        understood(EVERYTHING.asked().receive(data))


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.binary(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = "Members Num Ok Coord Vec Error Keys Messages NumNodes Event Name Payload ID LTime Type From Log Addr Port Tags"
rows = st.dictionaries(st.sampled_from([*FIELDS.split(), "Status"]), anything | st.lists(anything, max_size=2), max_size=6)
DECODERS = [values.members, values.joined, values.stats, values.coordinate, values.keys, *values.RECORDS.values()]


@given(rows | rows.map(lambda row: {"Members": [row]}), st.sampled_from(["user", "query", "member-join", "response", ""]))
def test_any_body_gives_a_value_or_a_protocol_error(found: Mapping[str, Any], kind: str) -> None:
    for decode in DECODERS:
        with contextlib.suppress(SerfProtocolError):
            repr(decode({"Event": kind, "Type": kind, **found}))


def test_a_list_that_claims_to_be_huge_is_refused_before_there_is_room_for_it() -> None:
    with pytest.raises(SerfProtocolError):
        greeted().receive(b"\xdd\xff\xff\xff\xff")


def test_an_object_without_end_is_given_up() -> None:
    connection, piece = greeted(), b"\xdc\xff\xff" + b"\xda\xff\xff" + bytes(65535)
    with pytest.raises(SerfProtocolError):
        for _ in range(MAX_OBJECT // len(piece) + 2):
            connection.receive(piece)


def test_an_answer_to_nothing_that_was_asked_breaks_the_connection_for_good() -> None:
    connection = greeted()
    connection.request("members")
    with pytest.raises(SerfProtocolError):
        connection.receive(header("", 999))
    with pytest.raises(SerfProtocolError, match="broken already"):
        connection.receive(header("Authentication required", 2))


@pytest.mark.parametrize("command", sorted(command for command, row in COMMANDS.items() if row.answer is not Body.NONE))
def test_an_authentication_error_has_no_body_to_wait_for(command: str) -> None:
    connection = greeted()
    needs = COMMANDS[command].needs
    examples = {"text": "x", "a list of text": ["x"]}
    connection.request(command, None if needs is None else {key: examples[kind.word] for key, kind in needs.items()})
    connection.request("leave")
    found = connection.receive(header("Authentication required", 2) + header("", 3))
    assert found == [Reply(2, command, "Authentication required"), Reply(3, "leave", "")]


def test_a_refused_stream_is_over() -> None:
    connection = greeted()
    connection.request("stream", {"Type": "nonsense"})
    assert connection.receive(header("Invalid event filter", 2)) == [Reply(2, "stream", "Invalid event filter")]
    with pytest.raises(SerfProtocolError):
        connection.receive(header("", 2))


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ("nosuch", None),
        ("members", {}),
        ("event", None),
        ("event", {"Payload": b""}),
        ("event", {"Name": "x", "Nmae": "x"}),
        ("event", {"Name": object()}),
        ("event", {"Name": b"bytes make the agent hang up"}),
        ("event", {"Name": "x", "Coalesce": 1}),
        ("tags", {"Tags": {"a": b"b"}}),
        ("tags", {"Tags": {"a": None}}),
        ("tags", {"DeleteTags": "text is a list of letters"}),
        ("query", {"Name": "x", "Timeout": 2**63}),
        ("query", {"Name": "x", "RelayFactor": 256}),
        ("stop", {"Stop": -1}),
        ("stop", {"Stop": True}),
        ("force-leave", {"Node": "half of a pair: \ud800"}),
        ("handshake", {"Version": 1}),
    ],
)
def test_our_own_misuse_is_another_error_and_asks_for_nothing(command: str, fields: dict[str, Any] | None) -> None:
    connection = greeted()
    with pytest.raises(SerfMisuse) as caught:
        connection.request(command, fields)
    assert isinstance(caught.value, ValueError) and not isinstance(caught.value, SerfError)
    assert connection.request("members")[0] == 2


def test_nothing_goes_before_the_handshake() -> None:
    with pytest.raises(SerfMisuse):
        Connection().request("members")


def test_a_misuse_does_not_show_what_may_be_secret() -> None:
    with pytest.raises(SerfMisuse) as caught:
        greeted().request("install-key", {"Key": b"s3cret"})
    assert "s3cret" not in str(caught.value)


@given(st.sampled_from(sorted(COMMANDS)), st.none() | st.dictionaries(st.sampled_from(["Name", "Key", "Tags"]), anything))
def test_any_request_is_bytes_or_a_misuse(command: str, fields: dict[str, Any] | None) -> None:
    with contextlib.suppress(SerfMisuse):
        assert greeted().request(command, fields)[1]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x0a\0\0\x01", "10.0.0.1"),
        (bytes(10) + b"\xff\xff\x0a\0\0\x01", "10.0.0.1"),
        (b"\xfd" + bytes(14) + b"\x01", "fd00::1"),
        (b"\x0a\0\0\x01".decode(), "10.0.0.1"),  # an agent of the old msgpack has no bytes
        (b"\x0a\0\xff\x01".decode("utf-8", "surrogateescape"), "10.0.255.1"),
        (b"\x0a\0\0", "?0a0000"),  # no address, and no reason to lose the others
        (None, "<nil>"),
    ],
)
def test_an_address_may_be_four_sixteen_or_mapped_bytes(raw: bytes | str | None, text: str) -> None:
    row = {"Name": "n", "Addr": raw, "Port": 7946, "Tags": None, "Status": "alive"}
    (member,) = values.members({"Members": [row]})
    assert (member.address, member.tags) == (text, {})


def test_nil_is_go_s_zero_value() -> None:
    assert values.members({"Members": None}) == ()
    assert values.event({"Event": "user", "Name": "x", "Payload": None}) == values.UserEvent("x", b"", 0, False)
    assert values.keys({"Keys": None, "Messages": None}) == values.KeyReport({}, {}, 0, 0, 0)
    assert values.coordinate({"Coord": {"Vec": None}, "Ok": True}) == values.Coordinate((), 0.0, 0.0, 0.0)


def test_an_event_of_a_newer_serf_is_an_event() -> None:
    assert values.event({"Event": "flood"}) == values.OtherEvent("flood")
