"""Probes everything that is wanted, and reports when a target's state changes.

One task per target, however many services share it; a new target is probed at once, then at its interval, faster while
the last result disagrees with the state (a death is known within about fall times that). `judged` is the whole logic of
rise and fall and is pure. A probe that this machine could not make (out of descriptors) says nothing about the server.
Does not: change IPVS, or know services.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from fusisd.model import CheckSettings, CheckState, CheckTarget, Health

log = logging.getLogger(__name__)

PROBES_IN_FLIGHT = 512  # file descriptors in use at a time; more wait their turn

Probe = Callable[[CheckTarget, float], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Record:
    """What a target's probes have said: its health, and the last result with how often in a row it came."""

    health: Health = Health()
    passing: bool | None = None
    streak: int = 0


def judged(record: Record, reason: str, settings: CheckSettings, now_s: float) -> Record:
    """The record after one more result; `reason` "" is a pass."""
    passing = not reason
    streak = record.streak + 1 if record.passing is passing else 1
    state, needed = (CheckState.UP, settings.rise) if passing else (CheckState.DOWN, settings.fall)
    record = replace(record, passing=passing, streak=streak)
    if streak >= needed and record.health.state is not state:
        return replace(record, health=Health(state, now_s, reason))
    return record


def pause_s(record: Record, settings: CheckSettings) -> float:
    """Until the next probe: short while the last result and the state disagree."""
    agreed = {True: CheckState.UP, False: CheckState.DOWN, None: None}[record.passing]
    return settings.interval_s if record.health.state is agreed else settings.fast_interval_s


class Monitor:
    """Fulfils ports.ChecksPort; lives on the event loop."""

    def __init__(
        self,
        probe: Probe,
        on_changed: Callable[[CheckTarget, Health], None],
        clock: Callable[[], float],
        settings: CheckSettings | None = None,
    ) -> None:
        """`probe(target, timeout_s)` gives "" or the reason of failure, and raises OSError when it could not be made.

        `clock` is monotonic seconds; `on_changed` hears the first decision on a target and each change, on the loop.
        """
        self._probe, self._on_changed, self._clock = probe, on_changed, clock
        self._settings = settings or CheckSettings()
        self._tasks: dict[CheckTarget, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(PROBES_IN_FLIGHT)
        self.errors = 0

    def want(self, targets: frozenset[CheckTarget]) -> None:
        """See ports.ChecksPort."""
        for target in self._tasks.keys() - targets:
            self._end(self._tasks.pop(target))
        for target in targets - self._tasks.keys():
            self._tasks[target] = asyncio.get_running_loop().create_task(self._watch(target))

    async def close(self) -> None:
        """End all probes; when this returns none is left."""
        for target in list(self._tasks):
            self._end(self._tasks.pop(target))
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _watch(self, target: CheckTarget) -> None:
        record, able = Record(), True
        spread = random.random()  # the second probe comes anywhere in the interval, or all that are new stay in step
        while True:
            began_s = self._clock()
            result = await self._result(target)
            if isinstance(result, str):
                before, record = record, judged(record, result, self._settings, self._clock())
                if record.health is not before.health:
                    self._on_changed(target, record.health)
            elif able:
                log.warning("cannot probe %s:%d: %s; its state stays as it is", target.address, target.port, result)
            able = isinstance(result, str)
            # From start to start, so that a slow answer does not stretch the interval.
            wait_s = pause_s(record, self._settings) * spread - (self._clock() - began_s)
            spread = random.uniform(0.95, 1.05)
            await asyncio.sleep(max(0.01, wait_s))

    async def _result(self, target: CheckTarget) -> str | OSError:
        """The probe's word, or why this machine could not ask."""
        async with self._slots:
            try:
                return await self._probe(target, self._settings.timeout_s)
            except OSError as error:
                return error
            except Exception:  # edge 2 of 3: a defect in a probe is a failed probe, not the end of checking
                self.errors += 1
                log.exception("probe of %s:%d failed unexpectedly", target.address, target.port)
                return "the probe itself failed; see the log"
