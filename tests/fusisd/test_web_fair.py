"""Who asks for much waits for itself."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from fusisd.web.fair import FairQueue


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=40))
def test_each_is_served_in_turn_and_nobody_s_order_is_changed(items: list[tuple[str, int]]) -> None:
    waiting = FairQueue[tuple[str, int]]()
    for whose, number in items:
        waiting.put(whose, (whose, number))
    assert len(waiting) == len(items)
    got = [waiting.get() for _ in items]
    for name in "abc":
        assert [item for item in got if item[0] == name] == [item for item in items if item[0] == name]
    left = {name: sum(item[0] == name for item in items) for name in "abc"}
    for (one, _), (other, _) in zip(got, got[1:], strict=False):
        left[one] -= 1
        assert one != other or not any(number for name, number in left.items() if name != one)


def test_one_of_another_s_is_served_next_however_many_wait() -> None:
    waiting = FairQueue[str]()
    for number in range(60):
        waiting.put("much", str(number))
    waiting.put("little", "health")
    assert [waiting.get(), waiting.get()] == ["0", "health"]


def test_who_gets_before_there_is_anything_waits_for_it() -> None:
    waiting, got = FairQueue[int](), list[int]()
    getting = [threading.Thread(target=lambda: got.append(waiting.get())) for _ in range(3)]
    for thread in getting:
        thread.start()
    for number in range(3):
        waiting.put("a", number)
    for thread in getting:
        thread.join(30)
    assert sorted(got) == [0, 1, 2]
    assert not len(waiting)
