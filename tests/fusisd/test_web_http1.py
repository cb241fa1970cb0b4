"""The scan of a request's head, without sockets."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusisd.web.http1 import BODY_LIMIT, Head, ProtocolError, answer, scan

WHOLE = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: keep-alive, Close\r\n\r\n"


def refusal(head: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        scan(head)
    return caught.value.status


def test_a_whole_head_is_understood() -> None:
    assert scan(WHOLE + b"abc") == Head(len(WHOLE), WHOLE, 3, b"POST", expects_continue=False, closes=True, host="x")


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_an_unfinished_head_is_waited_for(length: int) -> None:
    assert scan(WHOLE[:length]) is None


def test_the_parser_is_not_shown_expect_and_names_with_an_underscore() -> None:
    head = scan(b"PUT / HTTP/1.1\r\nHost: x\r\nEXPECT: 100-continue\r\nContent_Length: 9\r\nA: b\r\n\r\n")
    assert head is not None
    assert head.expects_continue
    assert head.text == b"PUT / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n"


@pytest.mark.parametrize(
    "length", [b"", b"-1", b"+3", b"1_0", b"0x10", b"3,3", b"3, 4", b"3 3", b"\xb2", b"1e3", b"3.0"]
)
def test_a_length_that_is_not_one_plain_number_is_refused(length: bytes) -> None:
    assert (
        refusal(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n") == "400 Bad Request"
    )


@pytest.mark.parametrize("digits", [b"1048577", b"9" * 18, b"9" * 5000], ids=["one more", "18", "5000"])
def test_a_length_over_the_limit_is_413_however_many_digits_it_has(digits: bytes) -> None:
    status = refusal(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + digits + b"\r\n\r\n")
    assert status == "413 Content Too Large"


def test_a_body_of_exactly_the_limit_is_accepted() -> None:
    head = scan(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BODY_LIMIT)
    assert head is not None
    assert head.body_size == BODY_LIMIT


@pytest.mark.parametrize("name", [b"Host", b"content-length", b"Content-Type", b"Authorization", b"Expect"])
def test_a_field_that_must_be_single_may_not_come_twice(name: bytes) -> None:
    fields = b"Host: x\r\n" if name != b"Host" else b""
    twice = name + b": 1\r\n" + name.upper() + b": 1\r\n"
    assert refusal(b"GET / HTTP/1.1\r\n" + fields + twice + b"\r\n") == "400 Bad Request"


def test_other_fields_may_be_repeated() -> None:
    assert scan(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: a\r\nAccept: b\r\n\r\n") is not None


@pytest.mark.parametrize("coding", [b"chunked", b"identity", b"gzip, chunked", b""])
def test_any_transfer_encoding_is_411_with_or_without_a_length(coding: bytes) -> None:
    for more in (b"", b"Content-Length: 3\r\n"):
        head = b"POST / HTTP/1.1\r\nHost: x\r\n" + more + b"Transfer-Encoding: " + coding + b"\r\n\r\n"
        assert refusal(head) == "411 Length Required"


@pytest.mark.parametrize(
    "line",
    [b"X : a", b" X: a", b"X: a\x00b", b"X: a\rb", b"X\xe9: a", b"no colon", b": a", b"X: a\x7f"],
)
def test_a_malformed_field_is_refused(line: bytes) -> None:
    assert refusal(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n") == "400 Bad Request"


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1 ",
        b"GET  / HTTP/1.1",
        b"GET /",
        b"GET / HTTP/1.1x",
        b"GET /\xff HTTP/1.1",
        b"G@T / HTTP/1.1",
    ],
)
def test_a_malformed_request_line_is_refused(line: bytes) -> None:
    assert refusal(line + b"\r\nHost: x\r\n\r\n") == "400 Bad Request"


def test_bare_line_feeds_are_refused_before_the_head_is_complete() -> None:
    assert refusal(b"GET / HTTP/1.1\n") == "400 Bad Request"


def test_an_unknown_expectation_is_417() -> None:
    assert refusal(b"GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n") == "417 Expectation Failed"


def test_http_1_0_needs_no_host_and_is_sent_no_100() -> None:
    head = scan(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    assert head is not None
    assert not head.expects_continue


def test_a_target_without_an_end_is_refused_before_the_head_s_limit() -> None:
    assert scan(b"GET /" + b"a" * 4000) is None
    assert refusal(b"GET /" + b"a" * 4200) == "414 URI Too Long"


def test_a_head_without_an_end_is_refused_at_the_limit() -> None:
    assert refusal(b"GET / HTTP/1.1\r\nX: " + b"a" * 16384) == "431 Request Header Fields Too Large"


def test_an_error_answer_is_json_and_ends_the_connection() -> None:
    head, _, body = answer("400 Bad Request", 'say "please"').partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json; charset=utf-8\r\n")
    assert b"\r\nConnection: close" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert json.loads(body) == {"error": 'say "please"'}


@given(st.binary(max_size=300))
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
def test_any_bytes_are_a_head_or_unfinished_or_refused(data: bytes) -> None:
    try:
        head = scan(data)
    except ProtocolError:
        return
    assert head is None or head.size <= len(data)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_what_is_refused_or_understood_stays_so_when_more_bytes_come(rest: bytes, cut: int) -> None:
    data = WHOLE + rest
    if cut >= len(WHOLE):
        assert scan(data[:cut]) == scan(data)


@pytest.mark.parametrize("target", [b"http://[/", b"http://[::1/", b"//[x"])
def test_a_target_that_nobody_could_take_apart_is_refused(target: bytes) -> None:
    assert refusal(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n") == "400 Bad Request"
