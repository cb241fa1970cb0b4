"""What the reading verbs return: lists that print as tables, for people at a prompt.

Does not: compute anything until it is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, overload

from pyipvs import rows
from pyipvs.layout import Row
from pyipvs.model import DestinationStatus, ServiceStatus


def table(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A text in columns; words stand left, numbers right."""
    cells = [columns, *lines]
    turned = list(zip(*cells, strict=True))
    widths = [max(len(str(cell)) for cell in column) for column in turned]
    right = [any(isinstance(cell, int) for cell in column) for column in turned]
    return "\n".join(_line(row, widths, right) for row in cells)


def _line(row: Iterable[Any], widths: list[int], right: list[bool]) -> str:
    cells = zip(row, widths, right, strict=True)
    return "  ".join(f"{cell!s:{'>' if number else '<'}{width}}" for cell, width, number in cells).rstrip()


class ServiceList(list[ServiceStatus]):
    """Services as the kernel gave them."""

    COLUMNS: ClassVar = ("SERVICE", "SCHEDULER", "FLAGS", "CONNS", "PKTS-IN", "PKTS-OUT", "BYTES-IN", "BYTES-OUT")

    def __repr__(self) -> str:
        return table(self.COLUMNS, map(service_cells, self))


class DestinationList(Sequence[DestinationStatus]):
    """Destinations of one service as the kernel gave them, newest first; each is made when it is asked for."""

    COLUMNS: ClassVar = ("DESTINATION", "METHOD", "WEIGHT", "ACTIVE", "INACTIVE", "CONNS", "BYTES-IN", "BYTES-OUT")

    def __init__(self, found: Sequence[Row] = ()) -> None:
        """`found`: rows with the fields rows.FIELDS."""
        self._rows = found

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> DestinationStatus: ...
    @overload
    def __getitem__(self, index: slice) -> DestinationList: ...
    def __getitem__(self, index: int | slice) -> DestinationStatus | DestinationList:
        return DestinationList(self._rows[index]) if isinstance(index, slice) else rows.status(self._rows[index])

    def __iter__(self) -> Iterator[DestinationStatus]:
        return map(rows.status, self._rows)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return table(self.COLUMNS, map(destination_cells, self))


def service_cells(row: ServiceStatus) -> tuple[object, ...]:
    """The columns of ServiceList."""
    service, stats = row.service, row.stats
    flags = [f"persistent {service.persistence_s}s"] if service.persistence_s else []
    flags += [flag.name.lower() for flag in service.flags if flag.name]
    packets, size = (stats.packets_in, stats.packets_out), (stats.bytes_in, stats.bytes_out)
    settings = (str(service.key), service.scheduler, ",".join(flags) or "-")
    return (*settings, stats.connections, *packets, *size)


def destination_cells(row: DestinationStatus) -> tuple[object, ...]:
    """The columns of DestinationList."""
    destination, stats = row.destination, row.stats
    counts = (row.active, row.inactive, stats.connections, stats.bytes_in, stats.bytes_out)
    return (str(destination), str(destination.method), destination.weight, *counts)
