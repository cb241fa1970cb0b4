"""HTTP answers as bytes: what passes, what does not and in which words, and that no bytes do anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd.health.answer import BODY_LIMIT, HEAD_LIMIT, Answer
from fusisd.health.asking import Failed

OK = ((200, 399),)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"


def verdict(data: bytes, wanted: bytes = b"", method: str = "GET", piece: int = 1 << 20) -> str | None:
    """The reason, "" for a pass, None while more is awaited; `data` arrives in pieces of that size."""
    answer = Answer(OK, wanted, method)
    try:
        for at in range(0, len(data), piece):
            if answer.feed(data[at : at + piece]):
                return ""
    except Failed as failed:
        return str(failed)
    return None


def ended(data: bytes, wanted: bytes = b"") -> str:
    answer = Answer(OK, wanted)
    assert not answer.feed(data)
    with pytest.raises(Failed) as failed:
        answer.end()
    return str(failed.value)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    ("data", "wanted", "said"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"", ""),
        (b"HTTP/1.0 204\r\nA: b\r\n\r\n", b"", ""),
        (b"HTTP/1.0 200 OK\nA: b\n\n", b"", ""),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", b"", None),
        (b"HTTP/1.1 503 No\r\n\r\nsorry", b"", "answered 503"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"", "answered 101"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"", None),
        (b"HTTP/1.1 999999 OK\r\n\r\n", b"", "does not speak HTTP/1: 'HTTP/1.1 999999 OK\\r\\n\\r\\n'"),
        (b"HTTP/1.1 200 OK\r\n\r\nall is well", b"is well", ""),
        (b"HTTP/1.1 200 OK\r\n\r\nall is ill", b"is well", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"lo", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhello", b"lo", "the answer's body lacks 'lo'"),
        (b"HTTP/1.1 204 No\r\n\r\n", b"lo", "the answer's body lacks 'lo'"),
        (CHUNKED + b"3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\n\r\n", b"hello", ""),
        (CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"olleh", "the answer's body lacks 'olleh'"),
        (CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n", b"3\r\n", None),
        (CHUNKED + b"3\r\nhel\r\nxyz\r\n", b"hel", ""),
    ],
)
def test_an_answer_is_judged_however_it_arrives(data: bytes, wanted: bytes, said: str | None, piece: int) -> None:
    assert verdict(data, wanted, piece=piece) == said


def test_garbage_is_refused_at_its_first_bytes() -> None:
    assert verdict(b"SSH-2.0-OpenSSH_9.2\r\n") == "does not speak HTTP/1: 'SSH-2.0-OpenSSH_9.2\\r\\n'"
    assert verdict(b"\x16\x03") == "does not speak HTTP/1: '\\x16\\x03'"
    assert (verdict(CHUNKED + b"xyz\r\n", b"a") or "").startswith("the answer's chunks are garbled")
    assert (verdict(CHUNKED + b"1" * 400, b"a") or "").startswith("the answer's chunks are garbled")


def test_endless_heads_end() -> None:
    said = f"the answer's head is longer than {HEAD_LIMIT} bytes"
    assert verdict(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * HEAD_LIMIT, piece=1000) == said
    assert verdict(b"HTTP/1.1 100 Continue\r\n\r\n" * HEAD_LIMIT, piece=1000) == said


def test_of_a_huge_body_the_beginning_counts() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n"
    assert verdict(head + b"x" * (BODY_LIMIT - 2) + b"end", b"end", piece=16384) == "the answer's body lacks 'end'"
    assert verdict(head + b"x" * (BODY_LIMIT - 3) + b"end", b"end", piece=16384) == ""


def test_the_answer_to_head_has_no_body() -> None:
    said = verdict(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"x", method="HEAD")
    assert said == "the answer's body lacks 'x'"


def test_a_connection_that_ends_early_is_told_by_where_it_ended() -> None:
    assert ended(b"") == "closed the connection without an answer"
    assert ended(b"HTTP/1.1 200") == "closed the connection in the midst of the answer's head"
    assert ended(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel", b"lo") == "the answer's body lacks 'lo'"


parts = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 100 X", b"\r\n", b"\n", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"5", b"0"]
)


@given(st.lists(st.one_of(parts, st.binary(max_size=20))), st.integers(1, 40), st.sampled_from([b"", b"lo"]))
def test_any_bytes_pass_or_fail_and_do_so_however_they_are_cut(pieces: list[bytes], piece: int, wanted: bytes) -> None:
    data = b"".join(pieces)
    said = verdict(data, wanted)
    assert said != "" or b"HTTP/1." in data
    cut = verdict(data, wanted, piece=piece)
    assert (said is None, said == "") == (cut is None, cut == "")


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 40))
def test_chunks_are_put_together(chunks: list[bytes], piece: int) -> None:
    text = b"".join(chunks) + b"<end>"
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b"<end>"])
    assert verdict(CHUNKED + wire, text, piece=piece) == ""
