"""When to list: decided by Rings, which is given the time. And what a subscription keeps of what nobody takes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd.serf import Overflowed, SerfError, Subscription
from fusisd.serf.watch import PAUSE_LIMIT_S, PAUSE_PER_LIST, RELIST_AFTER_S, RELIST_PERIOD_S, Rings


def lists(rings_s: list[float], took_s: float, until_s: float) -> list[tuple[float, float]]:
    """When lists that take so long began and ended, for rings at these times."""
    rings, now_s, waiting, done = Rings(0.0), 0.0, sorted(rings_s), []
    while now_s < until_s:
        due_s = now_s + rings.wait_s(now_s)
        if waiting and waiting[0] <= due_s:
            now_s = max(now_s, waiting.pop(0))
            rings.rang(now_s)
            continue
        done.append((due_s, due_s + took_s))
        now_s = due_s + took_s
        rings.listed(due_s, now_s)
    return done


def test_a_list_at_once_its_series_and_then_now_and_again() -> None:
    began_s = [round(began_s, 3) for began_s, _ in lists([3.0], 0.0, 25.0)]
    periods = [4.0 + n * RELIST_PERIOD_S for n in (1, 2, 3)]
    assert began_s == [*RELIST_AFTER_S, *(3.0 + after_s for after_s in RELIST_AFTER_S), *periods]


def test_in_a_storm_lists_take_a_fifth_of_the_time() -> None:
    done = lists([n / 1000 for n in range(30_000)], 0.04, 30.0)
    assert sum(end_s - began_s for began_s, end_s in done) <= 30.0 / (1 + PAUSE_PER_LIST) + 0.04
    assert len(done) > 100, "and they do go on"


@given(st.lists(st.floats(0, 20), max_size=60), st.floats(0, 3))
def test_every_ring_is_followed_by_a_list_soon_and_by_one_a_second_later(rings_s: list[float], took_s: float) -> None:
    done = lists(rings_s, took_s, 40.0)
    pause_s = min(took_s * PAUSE_PER_LIST, PAUSE_LIMIT_S)
    for ring_s in rings_s:
        assert any(ring_s <= began_s <= ring_s + took_s + pause_s + 1e-6 for began_s, _ in done)
    last_s = max(rings_s, default=0.0)
    assert any(began_s >= last_s + RELIST_AFTER_S[-1] - 1e-6 for began_s, _ in done)


def subscription(limit: int) -> Subscription[object]:
    return Subscription(1, lambda body: body["n"], limit)


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    async def scenario() -> None:
        waiting = subscription(10)
        for n in range(25):
            waiting.put({"n": n})
        assert [await anext(waiting) for _ in range(6)] == [Overflowed(20), 20, 21, 22, 23, 24]
        waiting.put({"n": 25})
        assert await anext(waiting) == 25

    asyncio.run(scenario())


def test_an_event_weighs_what_is_in_it() -> None:
    async def scenario() -> None:
        waiting = subscription(10)
        waiting.put({"n": 0, "Members": [None] * 8})
        waiting.put({"n": 1, "Members": [None] * 5000})  # one alone always fits, or nobody would ever hear of it
        assert [await anext(waiting), await anext(waiting)] == [Overflowed(1), 1]

    asyncio.run(scenario())


def test_what_came_before_the_end_is_read_before_the_end_is() -> None:
    async def scenario() -> None:
        waiting = subscription(10)
        waiting.put({"n": 0})
        waiting.end("gone")
        assert await anext(waiting) == 0
        with pytest.raises(SerfError, match="gone"):
            await anext(waiting)
        assert waiting.over == "gone"

    asyncio.run(scenario())


def test_a_ring_is_anything_and_empties_what_waits() -> None:
    async def scenario() -> None:
        waiting = subscription(10)
        assert not await waiting.rung(0.0)
        for n in range(25):
            waiting.put({"n": n})
        assert await waiting.rung(10.0)
        assert not await waiting.rung(0.0)
        waiting.end("gone")
        assert await waiting.rung(10.0)
        with pytest.raises(SerfError):
            await anext(waiting)

    asyncio.run(scenario())
