"""What is counted: histograms as Prometheus has them, operations by kind and result, one line for each turn that acted."""

from __future__ import annotations

import errno
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd.counts import BOUNDS_S, Counts, Histogram
from fusisd.inbox import Committed
from fusisd.model import Intent
from tests.fusisd.world import WEB_KEY, Daemon, at, web

OURS = frozenset({WEB_KEY})


@given(st.lists(st.floats(0.0, 10.0)))
def test_a_bucket_counts_all_that_are_not_above_it(seconds: list[float]) -> None:
    histogram = Histogram()
    for one in seconds:
        histogram.note(one)
    wanted = [sum(one <= bound for one in seconds) for bound in BOUNDS_S]
    assert [count for _, count in histogram.buckets()] == [*wanted, len(seconds)]
    assert [float(bound) for bound, _ in histogram.buckets()] == [*BOUNDS_S, float("inf")]
    assert histogram.sum_s == pytest.approx(sum(seconds))


def test_a_turn_counts_what_it_did_and_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    counts = Counts()
    daemon = Daemon(counts=counts)
    with caplog.at_level(logging.INFO):
        daemon.control.enter(Committed(Intent({"web": web(destinations={f"d{n}": at(n) for n in range(3)})}, 1), OURS))
        for _ in range(3):
            daemon.control.turn()
    assert counts.operations == {("add service", "done"): 1, ("add destination", "done"): 3}
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("turn ")]
    assert line.startswith("turn ops=4 planned=4 refused=0 reaction_ms=")
    assert (counts.turning.buckets()[-1][1], counts.reacting.buckets()[-1][1]) == (3, 1)


def test_what_the_kernel_refused_is_counted_by_its_kind() -> None:
    counts = Counts()
    daemon = Daemon(counts=counts)
    daemon.turn()
    daemon.fake.fail_next(errno.ENOMEM)
    daemon.control.enter(Committed(Intent({"web": web(destinations={"d1": at(1)})}, 1), OURS))
    daemon.control.turn()
    assert counts.operations == {("add service", "refused"): 1}
    assert counts.op_errors == 1
    assert counts.reacting.buckets()[-1][1] == 0
