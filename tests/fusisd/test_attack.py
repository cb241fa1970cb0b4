"""The attack of `make attack`, short: good GETs are answered meanwhile, and nothing is timed."""

from __future__ import annotations

import sys

import pytest

from tests.bench import attack
from tests.bench.attackers import KINDS, MIXED


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_good_gets_are_answered_during_an_attack_of_every_kind(tls: bool) -> None:
    with attack.target(tls, services=20) as made:
        words = [str(made.dry.port), MIXED, str(20 * len(KINDS)), attack.BIG, *(["tls"] if tls else [])]
        with attack.running(sys.executable, "-m", "tests.bench.attackers", *words):
            figures = made.measure(3.0)
        log = made.dry.log.read_text()
    assert figures.failed == 0
    assert len(figures.seconds) > 10
    assert "Traceback" not in log


def test_what_is_missed_is_named() -> None:
    def missed(seconds: list[float], failed: int, memory_mb: list[float], tls: bool = False) -> list[str]:
        return attack.Figures(seconds, failed, 0.0, memory_mb).missed(tls)

    assert missed([0.01] * 100, 0, [40.0] * 300) == []
    assert missed([0.01] * 98 + [0.3] * 2, 1, [40.0, 105.0]) == ["GETs failed", "p99", "growth"]
    assert missed([0.01], 0, [40.0, 105.0], tls=True) == []
    assert missed([0.01], 0, [40.0] * 61 + [45.0]) == ["creep"]
    assert missed([], 0, [40.0]) == ["p99"]
    assert attack.Figures([0.3], 1, 0.0, [40.0]).missed(False, over_the_cap=True) == ["GETs failed"]
