"""The routes of nodes: the members of the Serf cluster as the balancer sees them, with what of their tags was refused.

Does not: know Serf; the rows are those of the published status.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from fusisd.errors import NotFound
from fusisd.ports import Core
from fusisd.web.v1 import shapes
from fusisd.web.v1.events import TRANSITIONS, shown
from fusisd.web.v1.objects import Document
from fusisd.web.v1.pages import PAGED, page
from fusisd.web.v1.routes import Route
from fusisd.web.v1.services import answer


class Nodes:
    """The routes of this room over one core."""

    def __init__(self, core: Core) -> None:
        """The core is asked anew for each request."""
        self._core = core

    def routes(self) -> list[Route]:
        """What can be asked."""
        return [
            Route("GET", "/v1/nodes", self.list_nodes, {200: shapes.listed("nodes", shapes.NODE)}, PAGED),
            Route("GET", "/v1/nodes/<node>", self.show_node, {200: shapes.NODE_WITH_EVENTS}),
        ]

    def list_nodes(self, after: str = "", limit: int | None = None) -> object:
        """Members of the Serf cluster that offer services, or would."""
        return answer(page("nodes", self._rows(), lambda row: row, after, limit))

    def show_node(self, node: str) -> object:
        """One node, with the last events about it."""
        for name, row in self._rows():
            if name == node:
                events = self._core.events.last(TRANSITIONS, lambda event: event.node == node)
                return answer({**row, "transitions": [shown(event) for event in events]})
        raise NotFound(f"there is no node {node!r}")

    def _rows(self) -> list[tuple[str, Document]]:
        rows = cast(Iterable[dict[str, Any]], self._core.snapshot().status.get("nodes", ()))
        return [(row["name"], row) for row in rows]
