"""How the daemon is: `/status` for people and monitoring, `/healthz` and `/readyz` for what watches over it.

Does not: judge; the status is what the core published.
"""

from __future__ import annotations

from collections.abc import Callable

from fusisd.ports import Core
from fusisd.web.compat import json_response, render

STUCK_S = 5.0  # as the status page has it


class Status:
    """The routes of this room over one core."""

    def __init__(self, core: Core, clock: Callable[[], float]) -> None:
        """`clock` is the one that the snapshots' times are of."""
        self._core, self._clock = core, clock

    def routes(self) -> list[tuple[str, str, Callable[..., object]]]:
        """Method, path and handler of each route."""
        return [("GET", "/status", self.status), ("GET", "/healthz", self.healthz), ("GET", "/readyz", self.readyz)]

    def status(self) -> object:
        """The published status, its generation and its age in milliseconds."""
        snapshot = self._core.snapshot()
        age_ms = round(max(0.0, self._clock() - snapshot.at_s) * 1000, 1)
        return json_response(render({**snapshot.status, "generation": snapshot.generation, "age_ms": age_ms}))

    def healthz(self) -> object:
        """Well (200) while the loop publishes how things are; 503 with the reason when it is stuck."""
        return _told(self._stuck())

    def readyz(self) -> object:
        """The same, and not withdrawn: for what moves VIPs that are not fusisd's (keepalived)."""
        withdrawn = "this balancer is withdrawn" if self._core.snapshot().status.get("withdrawn") else ""
        return _told(self._stuck() or withdrawn)

    def _stuck(self) -> str:
        age_s = self._clock() - self._core.snapshot().at_s
        return f"the loop has published nothing for {age_s:.0f} s" if age_s > STUCK_S else ""


def _told(problem: str) -> object:
    return json_response(render({"ok": False, "error": problem} if problem else {"ok": True}), 503 if problem else 200)
