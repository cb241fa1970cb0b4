"""The routes of the table as a whole: adopt, release, pause, withdraw, settings, foreign, status, export, import.

Does not: decide what may be (the core does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bottle import request

from fusisd.commands import Adopt, Pause, Release, SetGlobals, Withdraw
from fusisd.documents import KEY, NAME, RANGES, TIMEOUTS, decode_intent, encode_intent
from fusisd.errors import Refused, Unavailable
from fusisd.fields import Reader, read_object, seconds
from fusisd.model import Intent
from fusisd.ports import Core
from fusisd.web.compat import who
from fusisd.web.v1 import changes, objects
from fusisd.web.v1.asked import json_object, query
from fusisd.web.v1.objects import Document
from fusisd.web.v1.problem import field_of
from fusisd.web.v1.services import answer, service_answer, service_view

_ADOPT: dict[str, Reader[Any]] = {"name": NAME, "key": KEY}
_PAUSE: dict[str, Reader[Any]] = {"seconds": seconds(0, 86400)}
_SETTINGS: dict[str, Reader[Any]] = {"timeouts": TIMEOUTS, "ranges": RANGES}


class Table:
    """The routes of this room over one core."""

    def __init__(self, core: Core, clock: Callable[[], float]) -> None:
        """`clock` is the one that the snapshots' times are of."""
        self._core, self._clock = core, clock

    def routes(self) -> list[tuple[str, str, Callable[..., object]]]:
        """Method, path and handler of each route."""
        return [
            ("POST", "/v1/adopt", self.adopt),
            ("POST", "/v1/services/<name>/release", self.release),
            ("POST", "/v1/pause", self.pause),
            ("POST", "/v1/withdraw", self.withdraw),
            ("DELETE", "/v1/withdraw", self.take_back),
            ("GET", "/v1/settings", self.show_settings),
            ("PUT", "/v1/settings", self.put_settings),
            ("GET", "/v1/foreign", self.list_foreign),
            ("GET", "/v1/status", self.status),
            ("GET", "/v1/export", self.export_all),
            ("POST", "/v1/import", self.import_all),
        ]

    def adopt(self) -> object:
        """Make a service of the kernel ours as it stands."""
        query(())
        asked = read_object(json_object(), "", _ADOPT, ("name", "key"))
        name, key = asked["name"], asked["key"]
        known = changes.there(self._core.snapshot().intent, name)
        if known is not None and known.key == key:
            return service_answer(service_view(self._core.snapshot(), name))
        after = self._core.submit(Adopt(name, key), who(request.environ))
        return service_answer(service_view(after, name), created=True)

    def release(self, name: str) -> object:
        """Forget a service of ours, and leave it in the kernel."""
        query(())
        service = self._core.snapshot().intent.services.get(name)
        self._core.submit(Release(name), who(request.environ))
        return answer({"name": name, "key": None if service is None else str(service.key)})

    def pause(self) -> object:
        """Change nothing in the kernel for a while."""
        query(())
        asked = read_object(json_object(), "", _PAUSE, ("seconds",))
        self._core.submit(Pause(asked["seconds"]), who(request.environ))
        return answer({"seconds": asked["seconds"]})

    def withdraw(self) -> object:
        """Take this balancer out: its VIPs leave the host, the table stays."""
        query(())
        return self._withdraw(Withdraw())

    def take_back(self) -> object:
        """Put its VIPs back."""
        query(())
        return self._withdraw(Withdraw(withdrawn=False))

    def _withdraw(self, command: Withdraw) -> object:
        after = self._core.submit(command, who(request.environ))
        return answer({"withdrawn": command.withdrawn, "vips": after.status.get("vips", [])})

    def show_settings(self) -> object:
        """Timeouts and ranges."""
        query(())
        return answer(_settings(self._core.snapshot().intent))

    def put_settings(self) -> object:
        """Set timeouts, ranges or both."""
        query(())
        command = SetGlobals(**read_object(json_object(), "", _SETTINGS))
        return answer(_settings(self._core.submit(command, who(request.environ)).intent))

    def list_foreign(self) -> object:
        """What the kernel has and is not ours."""
        query(())
        views = self._core.snapshot().services
        return answer({"foreign": [objects.shown_foreign(view) for view in views if view.foreign]})

    def status(self) -> object:
        """How the daemon is: as `/status`."""
        query(())
        snapshot = self._core.snapshot()
        age_ms = round(max(0.0, self._clock() - snapshot.at_s) * 1000, 1)
        return answer({**snapshot.status, "generation": snapshot.generation, "age_ms": age_ms})

    def export_all(self) -> object:
        """All intent as a file."""
        query(())
        return answer(encode_intent(self._core.snapshot().intent))

    def import_all(self) -> object:
        """Make everything of a file so, and remove nothing."""
        query(())
        file = decode_intent(json_object())
        snapshot = self._core.snapshot()
        wanted = {name: changes.with_its_address(one, snapshot.intent) for name, one in file.services.items()}
        file = Intent(wanted, timeouts=file.timeouts, ranges=file.ranges)
        steps = changes.tried(snapshot.intent, changes.import_of(file, snapshot.intent))
        done = self._import(steps)
        left_out = [name for name, one in wanted.items() if one.drain_s is not None]
        done += [_row(name, None, "skipped", "it was being deleted") for name in left_out]
        return answer({"complete": all(row["outcome"] != "refused" for row in done), "objects": done})

    def _import(self, steps: list[changes.Step]) -> list[Document]:
        """Submit what changes something. A refusal of the settings, which come first, is that of the whole; what the door
        refuses later concerns one object and what is in it; for want of the store the rest is not tried."""
        done: list[Document] = []
        refused: dict[str | None, str] = {}
        stopped = ""
        for step in steps:
            row = _row(step.service, step.destination, step.outcome)
            if reason := stopped or refused.get(step.service, ""):
                row |= {"outcome": "refused", "reason": reason}
            elif step.outcome != "unchanged":
                try:
                    self._core.submit(step.command, who(request.environ))
                except Refused as error:
                    if not done:
                        raise
                    row |= {"outcome": "refused", "reason": str(error), "field": field_of(error)}
                    stopped = f"not tried: {error}" if isinstance(error, Unavailable) else ""
                    if step.destination is None:
                        refused[step.service] = "its service was refused"
            done.append(row)
        return done


def _row(service: str | None, destination: str | None, outcome: str, reason: str = "") -> Document:
    return {"service": service, "destination": destination, "outcome": outcome, "reason": reason}


def _settings(intent: Intent) -> Document:
    timeouts = intent.timeouts
    shown = {"tcp_s": timeouts.tcp_s, "tcp_fin_s": timeouts.tcp_fin_s, "udp_s": timeouts.udp_s}
    return {"timeouts": shown, "ranges": list(intent.ranges)}
