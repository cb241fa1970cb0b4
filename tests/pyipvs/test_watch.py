"""Readings over time: rates, changes, zeroed counters, and a clock of our own."""

from __future__ import annotations

import pytest

from pyipvs import IPVS, Destination, ServiceKey, UpdateDestination
from pyipvs.testing import FakeKernel
from pyipvs.watch import Rates, samples

WEB = "tcp/10.0.0.1:80"
KEY = ServiceKey.parse(WEB)


def test_rates_and_changes_between_two_readings() -> None:
    kernel = FakeKernel()
    ipvs = IPVS(transport=kernel)
    ipvs.add_service(WEB)
    ipvs.add_destination(WEB, "10.0.0.2:80")
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    watching = samples(ipvs.snapshot, 2.0, lambda: now[0], sleep)
    first = next(watching)
    assert (first.at_s, first.interval_s, first.changes, first.rates) == (100.0, 0.0, [], {})
    kernel.traffic(WEB, "10.0.0.2:80", connections=10, bytes_in=4000)
    ipvs.update_destination(WEB, "10.0.0.2:80", weight=5)
    ipvs.add_destination(WEB, "10.0.0.3:80")
    second = next(watching)
    assert second.interval_s == 2.0
    assert second.rates == {KEY: Rates(5, 0, 0, 2000, 0), (KEY, ("10.0.0.2", 80)): Rates(5, 0, 0, 2000, 0)}
    assert second.changes[-1] == UpdateDestination(KEY, Destination("10.0.0.2", 80, 5))
    ipvs.zero()
    kernel.traffic(WEB, "10.0.0.2:80", connections=4)
    third = next(watching)
    assert third.rates[KEY].connections == 2.0
    assert third.changes == []


def test_an_interval_of_nothing_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="interval_s"):
        IPVS(transport=FakeKernel()).watch(0)
