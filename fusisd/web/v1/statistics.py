"""The routes of the kernel's counters and rates, by name: for pages and scripts that draw them.

Does not: read them (fusisd.statistics does, at most once a second for all who ask).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusisd.ports import Core, Reading, ServiceView
from fusisd.web.v1 import objects, shapes
from fusisd.web.v1.objects import Document
from fusisd.web.v1.routes import Route
from fusisd.web.v1.services import answer, service_view
from pyipvs import DestinationStatus, Stats

_FIELDS = Stats._fields


class StatisticsRoom:
    """The routes of this room over one core."""

    def __init__(self, core: Core, clock: Callable[[], float]) -> None:
        """`clock` is the one that the readings' times are of."""
        self._core, self._clock = core, clock

    def routes(self) -> list[Route]:
        """What can be asked."""
        one = "/v1/services/<name>/statistics"
        return [
            Route("GET", "/v1/statistics", self.show_statistics, {200: shapes.STATISTICS}),
            Route("GET", one, self.show_service_statistics, {200: shapes.SERVICE_STATISTICS}),
        ]

    def show_statistics(self) -> object:
        """The kernel's counters of every service of ours."""
        views, reading = objects.by_name(self._core.snapshot()), self._core.statistics()
        shown = {name: _service(view, reading) for name, view in views.items()}
        return answer({**self._when(reading), "services": shown})

    def show_service_statistics(self, name: str) -> object:
        """The kernel's counters of one service."""
        view, reading = service_view(self._core.snapshot(), name), self._core.statistics()
        return answer({"name": name, **self._when(reading), **_service(view, reading)})

    def _when(self, reading: Reading) -> Document:
        age_ms = round(max(0.0, self._clock() - reading.at_s) * 1000, 1) if reading.entries else None
        return {"age_ms": age_ms, "problem": reading.problem}


def _service(view: ServiceView, reading: Reading) -> Document:
    """`statistics` null: the kernel has none of it."""
    entry = reading.entries.get(view.key)
    if entry is None or entry.stats is None:
        return {"statistics": None, "destinations": {row.name: None for row in view.destinations}}
    found = {(row.destination.address, row.destination.port): row for row in entry.status}
    shown = {row.name: _destination(found.get((row.address, row.port))) for row in view.destinations}
    return {"statistics": dict(zip(_FIELDS, entry.stats, strict=True)), "destinations": shown}


def _destination(status: DestinationStatus | None) -> dict[str, Any] | None:
    if status is None:
        return None
    connections = {"active": status.active, "inactive": status.inactive, "persistent": status.persistent}
    return {**connections, **dict(zip(_FIELDS, status.stats, strict=True))}
