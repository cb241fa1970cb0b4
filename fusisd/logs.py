"""How lines of the log look: one event a line, its name first, then key=value; or the same as JSON.

A line is written as logging has it, `log.info("vip added vip=%s iface=%s", vip, iface)`: its template names event and keys,
the arguments are the values, so text and JSON are two ways to print the same. Nothing that a value holds can break a line
or begin another: line ends and quotes in it are escaped, and so is a traceback. When stderr is the journal
(JOURNAL_STREAM, systemd.exec(5)) each line begins with its priority as `<N>` (sd-daemon(3)) instead of time and level,
which the journal keeps itself.
Does not: decide what is logged, or know a secret: who logs passes none.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

FORMATS = ("text", "json")

_PAIR = re.compile(r"(?P<key>[a-z][a-z_]*)=(?P<spec>%[-+.\d]*[sdf])(?: |$)")
_BARE = re.compile(r"[^\s\"=\x00-\x1f\x7f]+\Z")  # a value that needs no quotes
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # of syslog(3); debug is 7


def configure(level: str, form: str, stream: TextIO, environ: Mapping[str, str] | None = None) -> None:
    """Log from `level` on to `stream` in one of FORMATS; `environ` None: the process's own."""
    to_journal = is_journal(stream, os.environ if environ is None else environ)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(to_journal) if form == "json" else TextLines(to_journal))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether what is written to `stream` goes to the journal: JOURNAL_STREAM is its device and inode."""
    said = environ.get("JOURNAL_STREAM", "")
    if not said:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file at all
        return False
    return said == f"{found.st_dev}:{found.st_ino}"


def event_of(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """The event and its values. A line of another shape (a library's) is an event as a whole."""
    template, values = str(record.msg), record.args
    pairs = list(_PAIR.finditer(template))
    event = template[: pairs[0].start()].rstrip() if pairs else template
    whole = "%" in event or not isinstance(values, tuple) or len(values) != len(pairs)
    if whole or event + "".join(f" {pair[0].rstrip()}" for pair in pairs) != template:
        return record.getMessage(), {}
    assert isinstance(values, tuple)
    return event, {pair["key"]: _value(pair["spec"], value) for pair, value in zip(pairs, values, strict=True)}


def _value(spec: str, value: object) -> object:
    """As the template has it: a number where it asks for one."""
    if spec == "%s":
        return value if value is None or isinstance(value, bool | int | float) else str(value)
    shown = spec % (value,)
    return int(shown) if spec.endswith("d") else float(shown) if spec.endswith("f") else shown


class _Lines(logging.Formatter):
    """What both forms share."""

    def __init__(self, to_journal: bool) -> None:
        """`to_journal`: priorities instead of time and level."""
        super().__init__()
        self._to_journal = to_journal

    def _found(self, record: logging.LogRecord) -> tuple[str, dict[str, object]]:
        event, values = event_of(record)
        if record.exc_info and record.exc_info[0] is not None:
            values["traceback"] = self.formatException(record.exc_info)
        return event, values

    def _priority(self, record: logging.LogRecord) -> str:
        number = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return f"<{number}>" if self._to_journal else ""


class TextLines(_Lines):
    """`2026-11-25T01:02:03.456Z INFO vip added vip=10.0.0.1 iface=eth0`."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        event, values = self._found(record)
        head = self._priority(record) or f"{_time(record)} {record.levelname} "
        return head + " ".join([_one_line(event), *(f"{key}={_quoted(value)}" for key, value in values.items())])


class JsonLines(_Lines):
    """The same as an object: time, level, logger, event, and the values."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        event, values = self._found(record)
        head = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name, "event": event}
        return self._priority(record) + json.dumps({**values, **head} if values.keys() & head else {**head, **values})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _quoted(value: object) -> str:
    text = "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if _BARE.match(text) and text.isprintable() else json.dumps(text)
