"""What pyipvs and the Serf client decode, one function for each way in: bytes of any kind in, nothing out, AssertionError
when the invariant that its docstring states does not hold. Any other exception that comes out is a finding too.

Run by coverage-guided fuzzing (`make fuzz`) and, over the corpus and its mutations, by test_fuzz.py.
Does not: make bytes up, or know a fuzzer.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fusisd.serf import values
from fusisd.serf.errors import SerfProtocolError
from fusisd.serf.protocol import Record, Reply
from pyipvs import DecodeError, Family, SaveFileError, daemons, framing, procfs, rows, savefile, wire
from pyipvs.const import Command
from pyipvs.errors import error_for
from pyipvs.layout import Row
from tests.serf.recorded import TRANSCRIPTS

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {}
FAMILY, SEQUENCE = 28, 1  # of the requests whose answers these bytes pretend to be
TABLES = (wire.COMMAND, wire.SERVICE, wire.DESTINATION, wire.STATS, wire.STATS64, wire.INFO, daemons.DAEMON)


def target(function: Target) -> Target:
    """Enter it in TARGETS under its name, which is that of its folder in the corpus too."""
    TARGETS[function.__name__] = function
    return function


@target
def attributes(data: bytes) -> None:
    """Attributes give values or DecodeError, and values that were read are written and read back the same."""
    for table in TABLES:
        with contextlib.suppress(DecodeError):
            values = wire.unpack(table, data)
            again = {attr.field: values[attr.field] for attr in table if attr.field in values}
            assert wire.unpack(table, wire.pack(table, again)).keys() == values.keys()


@target
def answers(data: bytes) -> None:
    """What answers a request for one thing gives a value that can be printed, or DecodeError."""
    for decode in (wire.decode_service, wire.decode_timeouts, wire.decode_info, daemons.decode):
        with contextlib.suppress(DecodeError):
            repr(decode(data))
    with contextlib.suppress(DecodeError):
        repr(rows.status(rows.decode(data, Family.INET6)))


@target
def buffers(data: bytes) -> None:
    """What a receive gave is taken apart without leaving it, and a refusal in it has an errno that names an error; or
    DecodeError."""
    view = memoryview(data)
    with contextlib.suppress(DecodeError):
        for message in framing.messages(view):
            assert 0 <= message.at < message.end <= len(data)
            if message.kind != FAMILY:
                said(framing.errno_of(view, message))
    refused: dict[int, int] = {}
    with contextlib.suppress(DecodeError):
        framing.outcomes(view, SEQUENCE, 4, refused)
    assert refused.keys() <= set(range(4))
    for code in refused.values():
        said(code)


def said(code: int) -> None:
    """An errno that came with an answer."""
    assert code >= 0
    repr(error_for("list services", code, "", "table"))


@target
def dump(data: bytes) -> None:
    """A receive of a dump gives rows and services, or DecodeError; by a Reader what the walk gives."""
    view = memoryview(data)
    with contextlib.suppress(DecodeError):
        begin, end, last = framing.answers(view, FAMILY, SEQUENCE)
        if begin < end:  # else there is none
            assert begin >= 0 and end <= len(data)
            agree(rows.Reader(), view[begin:end])
        if last is not None:
            said(framing.errno_of(view, last))


@target
def shapes(data: bytes) -> None:
    """Messages of one length, such as a Reader learns from, are read by it as the walk reads them."""
    number = 1 + data[0] % 4 if data else 1
    size = (len(data) - 1) // number & ~3
    parts = [data[1 + index * size :][:size] for index in range(number)] if size > 0 else []
    messages = [framing.request(Command.NEW_DEST, part, 0, FAMILY, SEQUENCE, 0) for part in parts]
    reader = rows.Reader()
    for end in range(1, len(messages) + 1):  # it learns from the first, and then it knows
        agree(reader, memoryview(b"".join(messages[:end])))


def agree(reader: rows.Reader, messages: memoryview) -> None:
    """The learnt shape and the walk, which is the reference."""
    walked = told(wire.decode_service(attributes) for attributes in rows.split(messages))
    assert told(reader.services(messages)) == walked
    for fields, family in itertools.product((rows.FIELDS, rows.CONFIGURED), Family):
        found = walk(messages, family, fields)
        try:
            quick = reader.rows(messages, family, fields)
        except DecodeError:
            assert found is None
            continue
        assert list(quick) == found
        told(map(rows.destination, quick))
        told(map(rows.status, quick if fields is rows.FIELDS else ()))


def walk(messages: memoryview, family: Family, fields: tuple[str, ...]) -> list[Row] | None:
    """None for DecodeError."""
    with contextlib.suppress(DecodeError):
        return [rows.decode(attributes, family, fields) for attributes in rows.split(messages)]
    return None


def told(values: Iterable[object]) -> list[str]:
    """Each as text, up to a DecodeError."""
    texts: list[str] = []
    with contextlib.suppress(DecodeError):
        texts.extend(map(repr, values))
    return texts


@target
def saved_table(data: bytes) -> None:
    """A saved table is read, and what is then written is read back as the same; or SaveFileError naming a line."""
    text = data.decode(errors="surrogateescape")
    try:
        table = savefile.parse(text)
    except SaveFileError as error:
        assert error.line == text.split("\n")[error.line_number - 1].strip()
    else:
        written = savefile.render(table)
        assert savefile.render(savefile.parse(written)) == written


@target
def connections(data: bytes) -> None:
    """Text gives connections, their ports and times numbers, or DecodeError."""
    with scratch(data) as path, contextlib.suppress(DecodeError):
        for one in procfs.connections(path):
            assert 0 <= one.client_port <= 65535 and one.expires_s >= 0
            repr(one)


@target
def cpu_statistics(data: bytes) -> None:
    """Text gives counters per CPU, the total last, or DecodeError."""
    with scratch(data) as path, contextlib.suppress(DecodeError):
        assert procfs.cpu_statistics(path)[-1].cpu is None


@target
def probed_table(data: bytes) -> None:
    """Any text has a digest, and the same text the same one."""
    with scratch(data) as path, procfs.TableProbe(path) as probe:
        digest = probe.digest()
        assert len(digest) == 16 and probe.digest() == digest


@target
def sysctls(data: bytes) -> None:
    """Any text of a sysctl is a number or text."""
    with scratch(data) as path:
        assert all(isinstance(value, int | str) for value in procfs.sysctls(path.parent).values())


@target
def serf_rpc(data: bytes) -> None:
    """What a Serf agent sends gives answers and records that can be understood, the same byte by byte; or
    SerfProtocolError."""
    for transcript in TRANSCRIPTS.values():
        with contextlib.suppress(SerfProtocolError):
            whole = transcript.asked().receive(data)
            slowly = transcript.asked()
            in_pieces = [item for byte in data for item in slowly.receive(bytes([byte]))]
            assert repr(in_pieces) == repr(whole)  # NaN is no NaN, but looks like it
            understood(whole)


def understood(items: Iterable[Reply | Record]) -> None:
    """Every value in them. Raises SerfProtocolError."""
    decoders = (values.members, values.joined, values.stats, values.coordinate, values.keys)
    for item in items:
        if isinstance(item, Record):
            repr(values.RECORDS[item.command](item.body))
            continue
        for decode in decoders:
            with contextlib.suppress(SerfProtocolError):
                repr(decode(item.body))


@contextlib.contextmanager
def scratch(data: bytes) -> Iterator[Path]:
    """A file of these bytes, alone in its folder."""
    with tempfile.TemporaryDirectory(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = Path(folder) / "text"
        path.write_bytes(data)
        yield path
