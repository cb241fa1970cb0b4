"""The kernel's counters and rates, read for whoever looks: at most once a second, once for all who ask, never unasked.

They are read in slices through pyipvs' `scan`, one request for each service, and the loop does what else there is between
two slices. A second is enough: the kernel's own rates are new every two (ip_vs_est.c). What is read stays as the kernel
gave it, rows, and becomes objects on the thread of whoever looks at them.
Lives on the loop, for the handle belongs to its thread; others come over the bridge.
Does not: know names, or change the kernel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from fusisd.ports import KernelPort, Reading
from pyipvs import DecodeError, IPVSError, ServiceKey
from pyipvs.ruleset import Entry

log = logging.getLogger(__name__)

PERIOD_S = 1.0  # how soon it is read again, when somebody asks
PER_COST = 20.0  # and not sooner than this many times the loop's work for it: a twentieth of the loop at the most
SLICE_S = 0.005  # how long the loop reads before it looks whether there is something else to do


class Statistics:
    """Reads, and keeps the last reading."""

    def __init__(self, kernel: KernelPort, clock: Callable[[], float]) -> None:
        """`clock` is monotonic seconds."""
        self._kernel, self._clock = kernel, clock
        self._reader: asyncio.Task[Reading] | None = None
        self._next_s = float("-inf")
        self.last = Reading(float("-inf"))
        """Any thread may take it."""

    def is_fresh(self) -> bool:
        """Whether the last reading is new enough for whoever asks now; on any thread."""
        return self._clock() < self._next_s

    async def read(self) -> Reading:
        """A reading that is new enough. When the kernel cannot be read it is the old one, with the reason in it."""
        if self.is_fresh():
            return self.last
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._read())
        return await asyncio.shield(self._reader)  # one who gives up does not end it for the others

    async def _read(self) -> Reading:
        began_s, worked_s = self._clock(), 0.0
        entries: dict[ServiceKey, Entry] = {}
        slice_s = began_s
        try:
            for entry in self._kernel.scan():
                entries[entry.service.key] = entry
                now_s = self._clock()
                if now_s - slice_s > SLICE_S:
                    worked_s += now_s - slice_s
                    await asyncio.sleep(0)
                    slice_s = self._clock()
            worked_s += self._clock() - slice_s
            self.last = Reading(began_s, worked_s, entries)
        except (IPVSError, DecodeError) as error:
            if not self.last.problem:
                log.error("cannot read statistics reason=%s", error)
            self.last = replace(self.last, problem=str(error))
        self._next_s = max(began_s + PERIOD_S, self._clock() + PER_COST * worked_s)
        return self.last
