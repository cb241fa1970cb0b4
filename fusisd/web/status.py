"""How the daemon is: `/status` for people and monitoring, `/healthz` to know whether it answers.

Does not: judge; the status is what the core published.
"""

from __future__ import annotations

from collections.abc import Callable

from fusisd.ports import Core
from fusisd.web.compat import json_response, render


class Status:
    """The routes of this room over one core."""

    def __init__(self, core: Core, clock: Callable[[], float]) -> None:
        """`clock` is the one that the snapshots' times are of."""
        self._core, self._clock = core, clock

    def routes(self) -> list[tuple[str, str, Callable[..., object]]]:
        """Method, path and handler of each route."""
        return [("GET", "/status", self.status), ("GET", "/healthz", self.healthz)]

    def status(self) -> object:
        """The published status, its generation and its age in milliseconds."""
        snapshot = self._core.snapshot()
        age_ms = round(max(0.0, self._clock() - snapshot.at_s) * 1000, 1)
        return json_response(render({**snapshot.status, "generation": snapshot.generation, "age_ms": age_ms}))

    def healthz(self) -> object:
        """Always well: that it answers is the message."""
        return json_response(render({"ok": True}))
