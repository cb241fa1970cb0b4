"""Probes everything that is wanted, and reports when what a target's check says changes.

One probe per target, however many services share it: at once when it is new, then at its interval, faster while few more
results decide (states.py). Idle targets cost a timer; a task lives as long as its probe. A probe that this machine could
not make (out of descriptors, a loop that was late) says nothing about the server.
Does not: change IPVS, know services, or decide (states.py does).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from fusisd.health.lanes import Lane
from fusisd.health.states import Record, could_not_ask, judged, pause_s
from fusisd.health.stretch import Load
from fusisd.model import CheckKind, CheckTarget, Health

log = logging.getLogger(__name__)

PROBES_IN_FLIGHT = 512  # file descriptors in use at a time; more wait their turn
SCRIPTS_IN_FLIGHT = 16  # processes at a time, besides

MEASURED_EVERY_S = 1.0

Probe = Callable[[CheckTarget, float], Awaitable[str]]


class _Watched:
    """One target while it is wanted."""

    __slots__ = ("target", "record", "due_s", "timer", "task", "wanted")

    def __init__(self, target: CheckTarget, now_s: float) -> None:
        self.target, self.due_s = target, now_s
        self.record = Record()
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.wanted = True


class Monitor:
    """Fulfils ports.ChecksPort; lives on the event loop."""

    def __init__(self, probe: Probe, on_changed: Callable[[CheckTarget, Health], None], clock: Callable[[], float]) -> None:
        """`probe(target, timeout_s)` gives "" or the reason of failure, and raises OSError when it could not be made.

        `clock` is monotonic seconds; `on_changed` hears the first decision on a target and each change of what is to be
        said of it, on the loop.
        """
        self._probe, self._on_changed, self._clock = probe, on_changed, clock
        self._wanted: frozenset[CheckTarget] = frozenset()
        self._watched: dict[CheckTarget, _Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._scripts = Lane(SCRIPTS_IN_FLIGHT, self._begin)
        self._others = Lane(PROBES_IN_FLIGHT, self._begin)
        self._load = Load()
        self._measuring: asyncio.TimerHandle | None = None
        self._measured_s = 0.0
        self._unable: set[CheckTarget] = set()
        self.errors = 0

    @property
    def stretch(self) -> float:
        """How many times longer than asked the intervals are now; 1.0 when the loop carries all probes."""
        return self._load.stretch

    @property
    def per_second(self) -> float:
        """Probes that ended in the last full second."""
        return self._load.per_second

    @property
    def figures(self) -> Mapping[str, float]:
        """See ports.ChecksPort. `unable`: targets that this machine cannot ask at present; `errors`: defects in probes."""
        rates = {"per_second": round(self.per_second, 1), "interval_stretch": round(self.stretch, 2)}
        return {"targets": len(self._watched), "unable": len(self._unable), "errors": self.errors, **rates}

    def want(self, targets: frozenset[CheckTarget]) -> None:
        """See ports.ChecksPort."""
        before, self._wanted = self._wanted, targets
        for target in before - targets:
            self._drop(target)
        for target in targets - before:
            if target.spec.kind is not CheckKind.NONE:
                self._watched[target] = watched = _Watched(target, self._clock())
                self._lane(watched).join(watched)
        if self._watched and self._measuring is None:
            self._measured_s = self._clock()
            self._measuring = asyncio.get_running_loop().call_later(MEASURED_EVERY_S, self._measure)

    async def close(self) -> None:
        """End all probes; when this returns none is left."""
        self.want(frozenset())
        if self._measuring is not None:
            self._measuring.cancel()
            self._measuring = None
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _drop(self, target: CheckTarget) -> None:
        watched = self._watched.pop(target, None)
        if watched is None:  # of kind NONE
            return
        watched.wanted = False
        self._unable.discard(target)
        if watched.timer is not None:
            watched.timer.cancel()
        if watched.task is not None:
            watched.task.cancel()

    def _lane(self, watched: _Watched) -> Lane[_Watched]:
        return self._scripts if watched.target.spec.kind is CheckKind.SCRIPT else self._others

    def _begin(self, watched: _Watched) -> bool:
        """The lane has a slot for it: begin, unless it is wanted no more."""
        if not watched.wanted:
            return False
        if watched.timer is not None:  # the first probe of many that are new together is never due anew
            self._load.began(self._clock() - watched.due_s)
        watched.task = asyncio.get_running_loop().create_task(self._ask(watched))
        self._tasks.add(watched.task)
        watched.task.add_done_callback(self._tasks.discard)
        watched.task.add_done_callback(lambda _: self._lane(watched).leave())
        return True

    async def _ask(self, watched: _Watched) -> None:
        target = watched.target
        began_s = self._clock()
        result = await self._result(target)
        self._load.done()
        watched.task = None
        before, now_s = watched.record.health, self._clock()
        if isinstance(result, str):
            watched.record = judged(watched.record, result, target.spec.timing, now_s)
        else:
            watched.record = could_not_ask(watched.record, str(result.strerror or result))
        self._note(target, None if isinstance(result, str) else result)
        if watched.record.health != before:
            self._on_changed(target, watched.record.health)
        if watched.wanted:  # on_changed may have ended in `want`
            self._again(watched, began_s, now_s)

    def _again(self, watched: _Watched, began_s: float, now_s: float) -> None:
        """The next probe: from start to start, so that a slow answer does not stretch the interval."""
        # The second probe comes anywhere in the interval, or all that are new stay in step. Never later than asked: a
        # silent death is known within interval + fall x timeout.
        spread = random.random() if watched.timer is None else random.uniform(0.9, 0.98)
        wait_s = pause_s(watched.record, watched.target.spec.timing) * spread * self._load.stretch
        watched.due_s = max(began_s + wait_s, now_s)
        lane = self._lane(watched)
        watched.timer = asyncio.get_running_loop().call_later(watched.due_s - now_s, lane.join, watched)

    async def _result(self, target: CheckTarget) -> str | OSError:
        """The probe's word, or why this machine could not ask."""
        try:
            return await self._probe(target, target.spec.timing.timeout_s)
        except OSError as error:
            return error
        except Exception:  # edge 2 of 3: a defect in a probe is a failed probe, not the end of checking
            self.errors += 1
            log.exception("probe failed unexpectedly target=%s", target)
            return "the probe itself failed; see the log"

    def _note(self, target: CheckTarget, error: OSError | None) -> None:
        """Log when this machine begins to be unable to ask, and when it can again: not each of a thousand targets."""
        were = bool(self._unable)
        if error is not None:
            self._unable.add(target)
            if not were:
                log.warning("probe cannot be made and states stay as they are target=%s reason=%s", target, error)
        elif were:
            self._unable.discard(target)
            if not self._unable:
                log.info("probes can be made again")

    def _measure(self) -> None:
        """Once a second: were the probes in time?"""
        now_s, before = self._clock(), self._load.stretch
        self._load.turn(now_s - self._measured_s, self._scripts.waiting + self._others.waiting)
        self._measured_s = now_s
        if before == 1.0 < self._load.stretch:
            log.warning("probes come late and intervals stretch made_per_s=%.0f", self._load.per_second)
        elif before > 1.0 == self._load.stretch:
            log.info("probes are made in time again")
        self._measuring = asyncio.get_running_loop().call_later(MEASURED_EVERY_S, self._measure)
