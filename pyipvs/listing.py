"""What the reading verbs return: lists that print as tables, for people at a prompt.

Does not: compute anything until it is printed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from pyipvs.model import DestinationStatus, ServiceStatus

T = TypeVar("T")


class _Listing(list[T]):
    """A list whose repr is a table; texts stand left, numbers right."""

    COLUMNS: ClassVar[tuple[str, ...]]

    def __repr__(self) -> str:
        table = [self.COLUMNS, *(self._cells(row) for row in self)]
        columns = list(zip(*table, strict=True))
        widths = [max(len(str(cell)) for cell in column) for column in columns]
        right = [any(isinstance(cell, int) for cell in column) for column in columns]
        return "\n".join(_line(row, widths, right) for row in table)

    def _cells(self, row: T) -> tuple[object, ...]:
        raise NotImplementedError


def _line(row: Iterable[Any], widths: list[int], right: list[bool]) -> str:
    cells = zip(row, widths, right, strict=True)
    return "  ".join(f"{cell!s:{'>' if number else '<'}{width}}" for cell, width, number in cells).rstrip()


class ServiceList(_Listing[ServiceStatus]):
    """Services as the kernel gave them."""

    COLUMNS = ("SERVICE", "SCHEDULER", "FLAGS", "CONNS", "PKTS-IN", "PKTS-OUT", "BYTES-IN", "BYTES-OUT")

    def _cells(self, row: ServiceStatus) -> tuple[object, ...]:
        service, stats = row.service, row.stats
        flags = [f"persistent {service.persistence_s}s"] if service.persistence_s else []
        flags += [flag.name.lower() for flag in service.flags if flag.name]
        packets, size = (stats.packets_in, stats.packets_out), (stats.bytes_in, stats.bytes_out)
        settings = (str(service.key), service.scheduler, ",".join(flags) or "-")
        return (*settings, stats.connections, *packets, *size)


class DestinationList(_Listing[DestinationStatus]):
    """Destinations of one service as the kernel gave them, newest first."""

    COLUMNS = ("DESTINATION", "METHOD", "WEIGHT", "ACTIVE", "INACTIVE", "CONNS", "BYTES-IN", "BYTES-OUT")

    def _cells(self, row: DestinationStatus) -> tuple[object, ...]:
        destination, stats = row.destination, row.stats
        counts = (row.active, row.inactive, stats.connections, stats.bytes_in, stats.bytes_out)
        return (str(destination), str(destination.method), destination.weight, *counts)
