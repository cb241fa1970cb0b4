"""A drain's life: the table's rules, and that whatever the kernel shows at whatever times, it ends and cuts nobody early."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import pyipvs
from fusisd.drains import MEANING, QUIET_S, TABLE, Drain, Phase, Sight, diagram, sight_of, wake_s
from fusisd.judge import Candidate, judge
from fusisd.model import Health
from fusisd.ports import KernelDestination
from pyipvs import Protocol
from tests.fusisd.world import ROUTE, at

SINCE_S = 100.0
drains = st.sampled_from([0.0, 1.0, 5.0, 60.0]).map(lambda limit_s: Drain(SINCE_S, limit_s))
times = st.floats(0.0, 70.0).map(lambda after_s: SINCE_S + after_s)
presents = st.none() | st.builds(
    lambda weight, active, inactive: KernelDestination(pyipvs.Destination("10.0.0.11", 80, weight, ROUTE), active, inactive),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 2),
)


def present(weight: int = 0, active: int = 0) -> KernelDestination:
    return KernelDestination(pyipvs.Destination("10.0.0.11", 80, weight, ROUTE), active)


def step(drain: Drain, there: KernelDestination | None, now_s: float) -> Phase:
    return TABLE[sight_of(drain, Protocol.TCP, there, now_s)]


def test_the_table_is_whole_and_only_what_cannot_lose_a_connection_or_has_come_to_its_limit_ends_a_drain() -> None:
    assert set(TABLE) == set(MEANING) == set(Sight)
    assert {sight for sight, phase in TABLE.items() if phase is Phase.OVER} == {Sight.GONE, Sight.LATE, Sight.IDLE}


def test_a_whole_life() -> None:
    drain = Drain(SINCE_S, 60.0)
    looks = [(present(3, 2), 0.0), (present(0, 2), 0.1), (present(0, 0), 1.0), (present(0, 1), 4.0), (present(0, 0), 5.0)]
    phases = [step(drain, there, SINCE_S + after_s) for there, after_s in looks]
    assert phases == [Phase.ASKED, Phase.WAITING, Phase.QUIET, Phase.WAITING, Phase.OVER]
    assert step(drain, present(0, 9), SINCE_S + 60.0) is Phase.OVER, "the deadline"
    assert step(drain, None, SINCE_S) is Phase.OVER, "nothing to wait for"


def test_the_diagram_draws_every_change_of_the_table_and_the_ways_in_and_out() -> None:
    drawn = {tuple(line.strip().partition(":")[0].split(" --> ")) for line in diagram().splitlines() if " --> " in line}
    lives = set(Phase) - {Phase.OVER}
    changes = {(before.value, after.value) for before in lives for after in TABLE.values() if before is not after}
    assert drawn == changes | {("[*]", "asked"), ("over", "[*]")} | {(phase.value, "[*]") for phase in lives}


@given(drains, presents, times)
def test_no_active_connection_is_cut_before_the_deadline_and_none_outlives_it(
    drain: Drain, there: KernelDestination | None, now_s: float
) -> None:
    over = step(drain, there, now_s) is Phase.OVER
    if now_s >= drain.until_s:
        assert over
    elif there is not None and (there.active or there.destination.weight or now_s < SINCE_S + QUIET_S):
        assert not over


@given(drains, presents, times)
def test_as_long_as_it_is_not_over_there_is_a_next_look_in_time(
    drain: Drain, there: KernelDestination | None, now_s: float
) -> None:
    if step(drain, there, now_s) is Phase.OVER:
        return
    next_s = wake_s(drain, there, now_s)
    assert now_s < next_s <= drain.until_s
    assert step(drain, there, drain.until_s) is Phase.OVER
    if sight_of(drain, Protocol.TCP, there, now_s) is Sight.YOUNG:
        assert step(drain, there, next_s) is Phase.OVER, "a quiet one is not looked at in vain"


@given(drains, presents, times, st.sampled_from(Protocol))
def test_what_drains_gets_no_new_connections_and_is_put_nowhere_it_is_not(
    drain: Drain, there: KernelDestination | None, now_s: float, protocol: Protocol
) -> None:
    verdict = judge(Candidate(at(1), drain=drain, drained_by="it left"), protocol, Health(), there, now_s)
    assert verdict.weight in (0, None)
    assert verdict.state == ("drained" if verdict.weight is None else "draining")
    assert (verdict.wake_s is None) is (verdict.weight is None)
    if there is None or protocol is Protocol.UDP:
        assert verdict.weight is None


@given(drains, st.lists(presents, max_size=8))
def test_looked_at_when_it_asks_to_be_any_drain_ends_with_its_deadline(
    drain: Drain, looks: list[KernelDestination | None]
) -> None:
    now_s, seen = SINCE_S, iter(looks)
    for _ in range(200):
        there = next(seen, present(0, 1))  # in the end one connection stays for ever
        if step(drain, there, now_s) is Phase.OVER:
            break
        now_s = wake_s(drain, there, now_s)
    assert step(drain, there, now_s) is Phase.OVER
    assert now_s <= drain.until_s
