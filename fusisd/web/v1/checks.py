"""The route of checks: what is asked of which destination, and what it has come to.

Does not: know how a check is made (health/ does).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fusisd.ports import Core
from fusisd.web.v1 import objects, shapes
from fusisd.web.v1.objects import Document
from fusisd.web.v1.pages import PAGED, page
from fusisd.web.v1.routes import Route
from fusisd.web.v1.services import answer


class Checks:
    """The route of this room over one core."""

    def __init__(self, core: Core) -> None:
        """The core is asked anew for each request."""
        self._core = core

    def routes(self) -> list[Route]:
        """What can be asked."""
        return [Route("GET", "/v1/checks", self.list_checks, {200: shapes.listed("checks", shapes.CHECKED)}, PAGED)]

    def list_checks(self, after: str = "", limit: int | None = None) -> object:
        """The checks of all destinations that have one."""
        return answer(page("checks", self._rows(), lambda row: row, after, limit))

    def _rows(self) -> Iterator[tuple[str, Document]]:
        snapshot = self._core.snapshot()
        for name in objects.by_name(snapshot):
            told: Any = snapshot.why(name) or {"destinations": ()}
            for row in told["destinations"]:
                if row["health"] is not None:
                    where = {"service": name, "destination": row["destination"]}
                    yield f"{name}/{row['destination']}", {**where, **row["health"], "path": row["path"]}
