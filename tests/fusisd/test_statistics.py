"""Reading the kernel's counters: only when asked, at most once a second, once for all who ask, in slices."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from typing import Any

from fusisd import statistics
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.statistics import PER_COST, PERIOD_S, Statistics
from pyipvs import IPVS
from pyipvs.ruleset import Entry
from pyipvs.testing import FakeKernel
from tests.fusisd.world import WEB_KEY, Clock

SERVICES = 20


class Kernel(IpvsKernel):
    """Counts how often it was read."""

    def __init__(self, fake: FakeKernel) -> None:
        super().__init__(IPVS(transport=fake), None)
        self.scans = 0

    def scan(self) -> Iterator[Entry]:
        self.scans += 1
        return super().scan()


class Whole:
    def __init__(self) -> None:
        self.fake, self.clock = FakeKernel(), Clock()
        with IPVS(transport=self.fake) as ipvs:
            for number in range(SERVICES):
                ipvs.add_service(f"tcp/10.0.0.1:{80 + number}")
                ipvs.add_destination(f"tcp/10.0.0.1:{80 + number}", f"10.0.1.1:{80 + number}", method="route")
        self.kernel = Kernel(self.fake)
        self.statistics = Statistics(self.kernel, self.clock)

    def connections(self) -> int:
        stats = self.statistics.last.entries[WEB_KEY].stats
        assert stats is not None
        return stats.connections


def test_nothing_is_read_unasked_and_once_for_all_who_ask() -> None:
    whole = Whole()
    assert (whole.kernel.scans, dict(whole.statistics.last.entries)) == (0, {})

    async def scenario() -> list[Any]:
        return await asyncio.gather(*(whole.statistics.read() for _ in range(5)))

    readings = asyncio.run(scenario())
    assert whole.kernel.scans == 1
    assert all(reading is whole.statistics.last for reading in readings)
    assert len(whole.statistics.last.entries) == SERVICES


def test_within_a_second_the_last_reading_is_given() -> None:
    whole = Whole()
    asyncio.run(whole.statistics.read())
    whole.fake.traffic(str(WEB_KEY), "10.0.1.1:80", connections=7)
    whole.clock.now_s += PERIOD_S * 0.9
    asyncio.run(whole.statistics.read())
    assert (whole.kernel.scans, whole.connections()) == (1, 0)
    whole.clock.now_s += PERIOD_S * 0.2
    asyncio.run(whole.statistics.read())
    assert (whole.kernel.scans, whole.connections()) == (2, 7)


def test_the_loop_does_other_things_between_two_slices() -> None:
    whole = Whole()
    whole.clock.step_s = statistics.SLICE_S * 0.6  # each look at the clock takes more than half a slice
    turns = list[int]()

    async def others() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    async def scenario() -> None:
        task = asyncio.ensure_future(others())
        await whole.statistics.read()
        task.cancel()

    asyncio.run(scenario())
    assert len(turns) >= SERVICES // 3


def test_a_large_table_is_read_less_often() -> None:
    whole = Whole()
    whole.clock.step_s = 0.01
    reading = asyncio.run(whole.statistics.read())
    whole.clock.step_s = 0.0
    assert reading.cost_s * PER_COST > PERIOD_S
    whole.clock.now_s += PERIOD_S + 0.1
    assert whole.statistics.is_fresh()
    whole.clock.now_s += reading.cost_s * PER_COST
    assert not whole.statistics.is_fresh()


def test_a_kernel_that_cannot_be_read_leaves_the_old_reading_and_says_so() -> None:
    whole = Whole()
    asyncio.run(whole.statistics.read())
    before = whole.statistics.last
    whole.clock.now_s += 2 * PERIOD_S
    whole.fake.fail_next(errno.ENOBUFS)
    reading = asyncio.run(whole.statistics.read())
    assert "ENOBUFS" in reading.problem
    assert (reading.entries, reading.at_s) == (before.entries, before.at_s)
    assert whole.statistics.is_fresh(), "and it is not tried again at once"
    whole.clock.now_s += 2 * PERIOD_S
    assert asyncio.run(whole.statistics.read()).problem == ""


def test_one_who_gives_up_does_not_end_it_for_the_others() -> None:
    whole = Whole()
    whole.clock.step_s = statistics.SLICE_S * 2

    async def scenario() -> None:
        impatient, patient = (asyncio.ensure_future(whole.statistics.read()) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        assert len((await patient).entries) == SERVICES

    asyncio.run(scenario())
    assert whole.kernel.scans == 1
