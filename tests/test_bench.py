"""The benchmark's arithmetic on made-up seconds; nothing is timed here."""

from __future__ import annotations

import pytest

from tests.bench.figures import OURS, Results, Runs, faster, judgement, ratio, slower, table, verdicts
from tests.bench.table import Shape

RUNS: Runs = {
    "ipvsadm": [{"load": 3.0, "read_cold": 0.4}, {"load": 6.0, "read_cold": 0.8}, {}],
    "C limit": [{"load": 0.01, "read_warm": 0.04}, {"load": 0.02, "read_warm": 0.08}, {"load": 0.01, "read_warm": 0.04}],
    "pyipvs": [
        {"load": 0.02, "read_warm": 0.1, "edit_read": 1.0, "edit_whole": 1.2},
        {"load": 0.04, "read_warm": 0.2, "edit_read": 2.0, "edit_whole": 2.4},
        {"load": 0.04, "read_warm": 0.1, "edit_read": 1.0, "edit_whole": 1.2},
    ],
}


def test_a_ratio_is_of_the_same_run_and_runs_that_lack_a_side_do_not_count() -> None:
    assert faster(RUNS, "ipvsadm", OURS, "load") == pytest.approx(150)
    assert slower(RUNS, "C limit", OURS, "load") == pytest.approx(2)
    assert ratio(RUNS, (OURS, "edit_whole"), (OURS, "edit_read")) == pytest.approx(1.2)
    assert slower(RUNS, "C limit", OURS, "update") is None
    assert faster(RUNS, "pyroute2", OURS, "load") is None


def test_a_warm_read_is_compared_with_the_one_read_that_ipvsadm_has() -> None:
    assert faster(RUNS, "ipvsadm", OURS, "read_warm") == pytest.approx(4)
    assert slower(RUNS, "C limit", OURS, "read_warm") == pytest.approx(2.5)


def test_targets_are_judged_in_the_shapes_they_speak_of() -> None:
    results: Results = {"1000x10": RUNS, "50x4": RUNS, "1000x100": {OURS: [{"memory_mb": 60.0}]}}
    found = {(verdict.target.text, verdict.shape): verdict.reached for verdict in verdicts(results)}
    assert found["load >= 100 x faster than ipvsadm -R", "50x4"] is True
    assert found["load >= 200 x faster than pyroute2", "1000x10"] is None
    assert found["read, warm >= 4 x faster than ipvsadm -Sn", "1000x10"] is True
    assert found["read, warm <= 2.2 x the C limit", "1000x10"] is False
    assert found["read+diff+apply of 10 <= 1.3 x read", "1000x10"] is True
    assert found["snapshot of 100,000 < 60 MB", "1000x100"] is False
    assert ("read, warm <= 2.2 x the C limit", "50x4") not in found
    assert ("load <= 3 x the C limit", "1000x100") not in found
    assert "NOT REACHED" in judgement(results)
    assert "pyipvs     3     0.0400 s  0.0200 s - 0.0400 s  150            2\n" in table("1000x10", RUNS)


def test_shapes_and_their_addresses() -> None:
    shape = Shape.parse("1000x10v6")
    assert (shape.services, shape.each, shape.destinations, str(shape)) == (1000, 10, 10_000, "1000x10v6")
    assert (shape.service(0), shape.real(15)) == ("fd00::1", "fd01::10")
    assert (Shape(1, 1).service(255), Shape(1, 1).real(0)) == ("172.16.1.0", "10.0.0.1")
    assert list(Shape(2, 2).pairs()) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    with pytest.raises(ValueError, match="is not SERVICES"):
        Shape.parse("10x0")
