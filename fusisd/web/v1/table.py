"""The routes of the table as a whole: adopt, release, pause, withdraw, settings, foreign, status, export, import.

Does not: decide what may be (the core does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bottle import HTTPResponse

from fusisd.commands import Adopt, Pause, Release, SetGlobals, Withdraw
from fusisd.documents import INTENT, KEY, NAME, PARTIAL_TIMEOUTS, RANGES, encode_intent
from fusisd.fields import object_of, seconds
from fusisd.model import Intent
from fusisd.ports import Core, Snapshot
from fusisd.web.v1 import changes, objects, shapes
from fusisd.web.v1.objects import Document
from fusisd.web.v1.pages import PAGED, page
from fusisd.web.v1.routes import SWITCH, Body, Change, Route
from fusisd.web.v1.services import answer, service_answer, service_view

_ADOPT = object_of({"name": NAME, "key": KEY}, ("name", "key"))
_PAUSE = object_of({"seconds": seconds(0, 86400)}, ("seconds",))
_SETTINGS = object_of({"timeouts": PARTIAL_TIMEOUTS, "ranges": RANGES})


class Table:
    """The routes of this room over one core."""

    def __init__(self, core: Core, clock: Callable[[], float]) -> None:
        """`clock` is the one that the snapshots' times are of."""
        self._core, self._clock = core, clock

    def routes(self) -> list[Route]:
        """What can be asked."""
        one, foreign = "/v1/services/<name>", shapes.listed("foreign", shapes.FOREIGN)
        adopted, withdrawn = {200: shapes.SERVICE, 201: shapes.SERVICE}, {200: shapes.WITHDRAWN}
        return [
            Route("POST", "/v1/adopt", self.adopt, adopted, body=Body(_ADOPT), refusals=(404,)),
            Route("POST", f"{one}/release", self.release, {200: shapes.RELEASED}),
            Route("POST", "/v1/pause", self.pause, {200: shapes.PAUSED}, body=Body(_PAUSE), plans=False),
            Route("POST", "/v1/withdraw", self.withdraw, withdrawn, plans=False),
            Route("DELETE", "/v1/withdraw", self.take_back, withdrawn, plans=False),
            Route("GET", "/v1/settings", self.show_settings, {200: shapes.SETTINGS}),
            Route("PUT", "/v1/settings", self.put_settings, {200: shapes.SETTINGS}, body=Body(_SETTINGS)),
            Route("GET", "/v1/foreign", self.list_foreign, {200: foreign}, PAGED),
            Route("GET", "/v1/status", self.status, {200: shapes.STATUS}),
            Route("GET", "/v1/export", self.export_all, {200: INTENT.schema}),
            Route("POST", "/v1/import", self.import_all, {200: shapes.IMPORTED}, {"adopt": SWITCH}, Body(INTENT)),
        ]

    def adopt(self, asked: Document) -> Change:
        """Make a service of the kernel ours as it stands."""
        name, key = asked["name"], asked["key"]
        known = changes.there(self._core.snapshot().intent, name)
        if known is not None and known.key == key:
            return Change([], lambda after: service_answer(service_view(after, name)))
        return Change([Adopt(name, key)], lambda after: service_answer(service_view(after, name), created=True))

    def release(self, name: str) -> Change:
        """Forget a service of ours, and leave it in the kernel."""
        service = self._core.snapshot().intent.services.get(name)
        key = None if service is None else str(service.key)
        return Change([Release(name)], lambda after: answer({"name": name, "key": key}))

    def pause(self, asked: Document) -> Change:
        """Change nothing in the kernel for a while."""
        return Change([Pause(asked["seconds"])], lambda after: answer(asked))

    def withdraw(self) -> Change:
        """Take this balancer out: its VIPs leave the host, the table stays."""
        return _withdraw(Withdraw())

    def take_back(self) -> Change:
        """Put its VIPs back."""
        return _withdraw(Withdraw(withdrawn=False))

    def show_settings(self) -> object:
        """Timeouts and ranges."""
        return answer(_settings(self._core.snapshot().intent))

    def put_settings(self, asked: Document) -> Change:
        """Set timeouts, ranges or both; what is left out stays."""
        single = tuple(asked.get("timeouts", {}).items())
        command = SetGlobals(ranges=asked.get("ranges"), single=single)
        return Change([command], lambda after: answer(_settings(after.intent)))

    def list_foreign(self, after: str = "", limit: int | None = None) -> object:
        """What the kernel has and is not ours."""
        views = ((str(view.key), view) for view in self._core.snapshot().services if view.foreign)
        return answer(page("foreign", views, objects.shown_foreign, after, limit))

    def status(self) -> object:
        """How the daemon is: as `/status`."""
        snapshot = self._core.snapshot()
        age_ms = round(max(0.0, self._clock() - snapshot.at_s) * 1000, 1)
        return answer({**snapshot.status, "generation": snapshot.generation, "age_ms": age_ms})

    def export_all(self) -> object:
        """All intent as a file."""
        return answer(encode_intent(self._core.snapshot().intent))

    def import_all(self, asked: Intent, adopt: bool = False) -> Change:
        """Make everything of a file so, and remove nothing; all of it or none. `adopt`: services that the kernel has already
        become ours."""
        snapshot = self._core.snapshot()
        intent = snapshot.intent
        foreign = {view.key for view in snapshot.services if view.foreign} if adopt else set()
        wanted = {name: changes.with_its_address(one, intent) for name, one in asked.services.items()}
        with changes.told_of(""):
            steps = changes.tried(intent, changes.import_of(replace(asked, services=wanted), intent, foreign))
        rows = [_row(step.service, step.destination, step.outcome) for step in steps]
        rows += [_row(name, None, "skipped") for name, one in wanted.items() if one.drain_s is not None]
        made = [step.command for step in steps if step.outcome != "unchanged"]
        return Change(made, lambda after: answer({"objects": rows}))


def _withdraw(command: Withdraw) -> Change:
    def told(after: Snapshot) -> HTTPResponse:
        others = {one.key.address for one in after.intent.services.values() if not one.vip_managed and one.key.address}
        vips = after.status.get("vips", [])
        return answer({"withdrawn": command.withdrawn, "vips": vips, "external": sorted(others)})

    return Change([command], told)


def _row(service: str | None, destination: str | None, outcome: str) -> Document:
    return {"service": service, "destination": destination, "outcome": outcome}


def _settings(intent: Intent) -> Document:
    timeouts = intent.timeouts
    shown = {"tcp_s": timeouts.tcp_s, "tcp_fin_s": timeouts.tcp_fin_s, "udp_s": timeouts.udp_s}
    return {"timeouts": shown, "ranges": list(intent.ranges)}
