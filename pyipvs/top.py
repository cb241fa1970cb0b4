"""`pyipvs top`: services and destinations with their rates, again and again.

On a terminal it draws in place and hears keys; anywhere else it writes one table after another.
Does not: know how the table is read.
"""

from __future__ import annotations

import os
import select
import signal
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TextIO

from pyipvs.model import DestinationStatus, ServiceKey
from pyipvs.report import aligned, count
from pyipvs.ruleset import Entry, Ruleset
from pyipvs.watch import Rates, Sample, samples

_COLUMNS = (
    "SERVICE", "METHOD", "WEIGHT", "ACTIVE", "INACT",
    "CONNS/s", "BYTES-IN/s", "BYTES-OUT/s", "PKTS-IN/s", "PKTS-OUT/s",
)  # fmt: skip
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # alternate screen; cursor
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_BOLD, _REVERSE, _NORMAL = "\x1b[1m", "\x1b[7m", "\x1b[m"
_LOOK_S = 0.25  # how soon another size of the terminal is seen
_EXACT = "{:.1f}".format


class Line(NamedTuple):
    """A service (its connections and weights are sums) or a destination. `place` sorts it among its like."""

    name: str
    method: str
    weight: int
    active: int
    inactive: int
    rates: Rates | None
    place: Any


SORTS: dict[str, Callable[[Line], float]] = {
    "conns": lambda line: line.rates.connections if line.rates else 0,
    "bytes": lambda line: line.rates.bytes_in + line.rates.bytes_out if line.rates else 0,
    "packets": lambda line: line.rates.packets_in + line.rates.packets_out if line.rates else 0,
    "active": lambda line: line.active,
    "weight": lambda line: line.weight,
    "name": lambda line: 0,
}
_KEYS = {name[0]: name for name in SORTS}


class _Ended(Exception):
    """Somebody pressed q, or the terminal went."""


def show(
    read: Callable[[], Ruleset], interval_s: float, sort: str, intervals: int | None, source: TextIO, out: TextIO
) -> None:
    """Until q, Ctrl-C or so many `intervals`; on a terminal where `source` and `out` both are one."""
    try:
        if source.isatty() and out.isatty():
            with Screen(source, out, sort) as screen:
                for sample in islice(samples(read, interval_s, sleep=screen.wait), _stop(intervals)):
                    screen.draw(sample)
        else:
            for sample in islice(samples(read, interval_s), 1, _stop(intervals)):  # the first has no rates
                out.write("\n".join(text(sample, sort)) + "\n\n")
                out.flush()
    except (_Ended, KeyboardInterrupt):
        return


def _stop(intervals: int | None) -> int | None:
    return None if intervals is None else intervals + 1


def text(sample: Sample, sort: str) -> list[str]:
    """The whole of a sample, with exact numbers."""
    return [_heading(sample, sort), *aligned([_COLUMNS, *(_cells(line, _EXACT) for line in lines(sample, sort))], 2)]


def fitted(sample: Sample, sort: str, width: int, height: int) -> list[str]:
    """What a screen of this size has room for: of columns, of lines and of each line; numbers in three digits."""
    whole = sum(1 + len(entry) for entry in sample.table.values())
    room = max(1, height - 3)
    shown = [_cells(line, short) for line in islice(lines(sample, sort), room if whole <= room else room - 1)]
    found = [_heading(sample, sort), *aligned([_COLUMNS, *shown], 2, width)]
    if len(shown) < whole:
        found.append(f"... and {whole - len(shown)} more")
    found.append("keys: q quit, sort by " + ", ".join(f"{key} {name}" for key, name in _KEYS.items()))
    return [line if len(line) <= width else line[: max(0, width - 1)] + "~" for line in found][-max(1, height) :]


def lines(sample: Sample, sort: str) -> Iterator[Line]:
    """Each service and below it its destinations, the highest first; made as they are asked for."""

    def rank(line: Line) -> tuple[float, Any]:
        return (-SORTS[sort](line), line.place)

    services = [(_service_line(sample, key, entry), key, entry) for key, entry in sample.table.items()]
    for line, key, entry in sorted(services, key=lambda row: rank(row[0])):
        yield line
        yield from sorted((_destination_line(sample, key, row) for row in entry.status), key=rank)


def _service_line(sample: Sample, key: ServiceKey, entry: Entry) -> Line:
    rows = list(entry.status)
    sums = (sum(row.destination.weight for row in rows), sum(row.active for row in rows), sum(row.inactive for row in rows))
    return Line(str(key), entry.service.scheduler, *sums, sample.rates.get(key), key)


def _destination_line(sample: Sample, key: ServiceKey, row: DestinationStatus) -> Line:
    one = row.destination
    rates, place = sample.rates.get((key, one.key)), (one.family, one.packed, one.port)
    return Line(f"  {one}", str(one.method), one.weight, row.active, row.inactive, rates, place)


def _heading(sample: Sample, sort: str) -> str:
    destinations = sum(map(len, sample.table.values()))
    parts = [count(len(sample.table), "service"), count(destinations, "destination"), f"by {sort}"]
    if sample.interval_s:
        parts.append(f"over {sample.interval_s:.2f} s")
    if sample.changes:
        parts.append(f"table changed: {len(sample.changes)}")
    return "pyipvs top: " + ", ".join(parts)


def _cells(line: Line, number: Callable[[float], str]) -> Sequence[str]:
    whole = (line.weight, line.active, line.inactive)
    if line.rates is None:
        rates = ["-"] * 5
    else:
        connections, packets_in, packets_out, bytes_in, bytes_out = map(number, line.rates)
        rates = [connections, bytes_in, bytes_out, packets_in, packets_out]
    return (line.name, line.method, *map(str, whole), *rates)


def short(value: float) -> str:
    """`0`, `9.5`, `123`, `1.2k`: three digits are enough for what changes every second."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return _digits(value) + unit
        value /= 1000
    return _digits(value) + "T"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 or value == int(value) else f"{value:.1f}"


class Screen:
    """A terminal that is drawn on in place, and is at the end as it was before; a context manager."""

    def __init__(self, source: TextIO, out: TextIO, sort: str) -> None:
        """Keys come from `source`."""
        self._source, self._out, self._sort = source.fileno(), out, sort
        self._before: list[Any] = []
        self._sample: Sample | None = None
        self._size = os.terminal_size((0, 0))

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._source)
        self._on_end = signal.signal(signal.SIGTERM, _exit)
        mode = termios.tcgetattr(self._source)
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        mode[6][termios.VSUSP] = b"\0"  # a stopped program would leave its screen behind
        termios.tcsetattr(self._source, termios.TCSADRAIN, mode)
        self._write(_ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._write(_LEAVE)
        finally:
            termios.tcsetattr(self._source, termios.TCSADRAIN, self._before)
            signal.signal(signal.SIGTERM, self._on_end)

    def draw(self, sample: Sample) -> None:
        """Show this one from now on."""
        self._sample = sample
        self._redraw()

    def wait(self, seconds: float) -> None:
        """Sleep, and meanwhile do what keys say. Raises _Ended."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            ready, _, _ = select.select([self._source], [], [], min(left_s, _LOOK_S))
            if ready:
                self._hear(os.read(self._source, 64))
            elif self._size != os.get_terminal_size(self._out.fileno()):
                self._redraw()

    def _hear(self, typed: bytes) -> None:
        if not typed or b"q" in typed:
            raise _Ended
        for key in typed.decode("ascii", "replace"):
            self._sort = _KEYS.get(key, self._sort)
        self._redraw()

    def _redraw(self) -> None:
        self._size = os.get_terminal_size(self._out.fileno())
        if self._sample is None:
            return
        width, height = (one or other for one, other in zip(self._size, (80, 24), strict=True))  # 0 = nobody said
        found = fitted(self._sample, self._sort, width, height)
        found[0] = f"{_BOLD}{found[0]}{_NORMAL}"
        if len(found) > 1:
            found[1] = f"{_REVERSE}{found[1]:<{width}}{_NORMAL}"
        self._write(_HOME + "\n".join(line + _END_OF_LINE for line in found) + _END_OF_SCREEN)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
