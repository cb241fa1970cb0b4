"""The log: one event a line, its name first, then key=value; the same as JSON; what the journal is told."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd import logs

ROOT = Path(__file__).parents[2]
# An event's words, then keys with their values; fusis-agent has templates of its own.
TEMPLATE = re.compile(r"[a-z][a-zA-Z -]*(?: [a-z][a-z_]*=%[-+.\d]*[sdf])*\Z")


def record(template: str, *values: object, level: int = logging.INFO, error: bool = False) -> logging.LogRecord:
    return logging.LogRecord("fusisd.test", level, __file__, 1, template, values, sys.exc_info() if error else None)


def text(*words: object, to_journal: bool = True, **more: object) -> str:
    return logs.TextLines(to_journal).format(record(*words, **more))  # type: ignore[arg-type]


def test_an_event_comes_first_then_its_values() -> None:
    assert text("vip added vip=%s iface=%s", "10.0.0.1", "eth0") == "<6>vip added vip=10.0.0.1 iface=eth0"
    assert text("turn ops=%d turn_ms=%.2f", 3, 1.234) == "<6>turn ops=3 turn_ms=1.23"
    assert text("stopped") == "<6>stopped"
    assert text("odd value=%s other=%s", None, "") == '<6>odd value=- other=""'


def test_outside_the_journal_a_line_begins_with_time_and_level() -> None:
    line = text("stopped", to_journal=False, level=logging.WARNING)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING stopped", line)


@pytest.mark.parametrize(("level", "number"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 3)])
def test_the_journal_is_told_the_priority(level: str, number: int) -> None:
    assert text("stopped", level=logging.getLevelName(level.upper())).startswith(f"<{number}>")


def test_what_a_value_holds_breaks_no_line() -> None:
    assert text("node reason=%s", 'a "b"\n<0>forged x=1') == '<6>node reason="a \\"b\\"\\n<0>forged x=1"'
    assert text("a\nb") == "<6>a\\nb"


@given(st.text(), st.text())
def test_a_line_is_one_line_and_gives_its_values_back(one: str, two: str) -> None:
    line = text("event one=%s two=%s", one, two)
    assert len(line.splitlines()) == 1
    found = re.fullmatch(r'<6>event one=("(?:\\.|[^"\\])*"|\S+) two=("(?:\\.|[^"\\])*"|\S+)', line)
    assert found is not None
    assert [json.loads(said) if said[0] == '"' else said for said in found.groups()] == [one, two]


@given(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_json_has_the_same_values(one: str, two: int, three: float) -> None:
    line = logs.JsonLines(False).format(record("event one=%s two=%d three=%s", one, two, three))
    assert len(line.splitlines()) == 1
    told = json.loads(line)
    assert (told["event"], told["level"], told["logger"]) == ("event", "info", "fusisd.test")
    assert (told["one"], told["two"], told["three"]) == (one, two, three)


def test_a_key_of_ours_does_not_take_the_event_s_place() -> None:
    assert json.loads(logs.JsonLines(False).format(record("turn level=%s", "odd")))["level"] == "info"


def test_a_line_of_a_library_is_an_event_as_a_whole() -> None:
    assert logs.event_of(record("%s took %d s", "it", 3)) == ("it took 3 s", {})
    assert logs.event_of(record("100% sure")) == ("100% sure", {})
    assert logs.event_of(record("a=%s and more", 1)) == ("a=1 and more", {})


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_traceback_stays_in_its_line(form: str) -> None:
    try:
        raise ZeroDivisionError("inside")
    except ZeroDivisionError:
        line = (logs.JsonLines if form == "json" else logs.TextLines)(True).format(record("turn failed", error=True))
    assert len(line.splitlines()) == 1
    assert "ZeroDivisionError: inside" in line


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as stream:
        found = os.fstat(stream.fileno())
        assert logs.is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not logs.is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not logs.is_journal(stream, {})
    assert not logs.is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:1"})


@pytest.fixture
def untouched() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("form", logs.FORMATS)
def test_configured_it_logs_from_a_level_on(form: str) -> None:
    stream = io.StringIO()
    logs.configure("warning", form, stream, {})
    logging.getLogger("fusisd.test").info("quiet")
    logging.getLogger("fusisd.test").warning("loud by=%d", 2)
    (line,) = stream.getvalue().splitlines()
    assert ("quiet" in line, "loud" in line) == (False, True)
    assert (json.loads(line)["by"] == 2) if form == "json" else line.endswith(" WARNING loud by=2")


def templates() -> Iterator[tuple[str, ast.Call]]:
    """Every call that logs, with the file it is in."""
    for path in sorted((ROOT / "fusisd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=str())):
                    if path.name != "journal.py":  # whose templates are made of events
                        yield str(path.relative_to(ROOT)), node


def test_every_line_that_we_log_has_an_event_and_keys() -> None:
    calls = list(templates())
    assert len(calls) > 30
    for where, call in calls:
        said = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert any(TEMPLATE.match(one) for one in said), f"{where}:{call.lineno}: {said}"
