"""How the kernel's table is kept in view: in small steps, and only what is other than it was known is news."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusisd import look
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.look import PERIOD_S, SLICE_S, Look
from fusisd.ports import KernelTable
from pyipvs import IPVS, ServiceKey
from pyipvs.testing import FakeKernel
from tests.fusisd.world import ROUTE, Clock

SERVICES = 6


class Seen:
    """A look at a fake kernel, and the table as it was last known."""

    def __init__(self) -> None:
        self.fake, self.clock = FakeKernel(), Clock()
        self.ipvs = IPVS(transport=self.fake)
        for number in range(SERVICES):
            self.ipvs.add_service(f"tcp/10.0.0.{number + 1}:80", scheduler="rr")
            self.ipvs.add_destination(f"tcp/10.0.0.{number + 1}:80", "10.0.1.1:80", method=ROUTE)
        self.look = Look(IpvsKernel(self.ipvs, None), self.clock)
        self.table: KernelTable = self.look.whole()

    def again(self, asked: bool = False) -> set[ServiceKey]:
        """The keys that this turn read."""
        return set(self.look.again(self.clock.now_s, asked, ()))

    def until_quiet(self) -> list[set[ServiceKey]]:
        """What each turn read, until none is due."""
        turns = []
        while self.clock.now_s >= self.look.next_s:
            turns.append(self.again())
            assert len(turns) < 100, "it never comes to an end"
        return turns


def key(number: int) -> ServiceKey:
    return ServiceKey.parse(f"tcp/10.0.0.{number + 1}:80")


def test_what_is_as_it_was_known_is_no_news() -> None:
    seen = Seen()
    read = {key(0): IpvsKernel(seen.ipvs, None).read_service(key(0))}
    assert read[key(0)] is not seen.table[key(0)]
    assert look.news(seen.table, read) == {}


def test_of_a_service_that_changed_the_rows_that_did_not_are_the_known_ones() -> None:
    seen = Seen()
    seen.ipvs.add_destination(key(0), "10.0.1.2:80", method=ROUTE)
    news = look.news(seen.table, {key(0): IpvsKernel(seen.ipvs, None).read_service(key(0)), key(9): None})
    rows = news[key(0)].destinations  # type: ignore[union-attr]
    assert list(news) == [key(0)], "nothing was there under the other key, and nothing is"
    assert rows[("10.0.1.1", 80)] is seen.table[key(0)].destinations[("10.0.1.1", 80)]
    assert ("10.0.1.2", 80) in rows


@pytest.mark.parametrize("what", ["gone", "scheduler", "counts", "destination gone"])
def test_each_sort_of_change_is_news(what: str) -> None:
    seen = Seen()
    there = seen.table[key(0)]
    row = there.destinations[("10.0.1.1", 80)]
    other = {
        "gone": None,
        "scheduler": replace(there, service=replace(there.service, scheduler="wlc")),
        "counts": replace(there, destinations={("10.0.1.1", 80): row._replace(active=3)}),
        "destination gone": replace(there, destinations={}),
    }[what]
    assert look.news(seen.table, {key(0): other}) == {key(0): other}


def test_after_fingerprints_that_took_a_turn_s_time_the_rest_waits_for_the_next() -> None:
    seen = Seen()
    seen.clock.now_s += PERIOD_S
    seen.ipvs.update_destination(key(0), "10.0.1.1:80", weight=7)
    began_s, seen.clock.step_s = seen.clock.now_s, SLICE_S * 2  # each look at the clock is after the turn's time
    assert seen.look.again(began_s, False, ()) == {}
    seen.clock.step_s = 0.0
    turns = seen.until_quiet()
    assert key(0) in turns[0]
    assert {key(number) for number in range(SERVICES)} == set().union(*turns), "the scrub had its turn, too"


def test_a_reader_who_asks_for_the_kernel_as_it_is_has_it_in_the_same_turn() -> None:
    seen = Seen()
    seen.ipvs.update_destination(key(0), "10.0.1.1:80", weight=7)
    seen.clock.step_s = SLICE_S * 2
    assert key(0) in seen.again(asked=True)
