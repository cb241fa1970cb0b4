"""Whatever was done to a mapping, `changed` names every key whose value is another object, and no key that is not there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusisd.mappings import changed

KEYS = st.integers(0, 9)
STEPS = st.lists(st.tuples(st.sampled_from(["set", "delete", "move"]), KEYS))


@given(st.lists(KEYS, unique=True), STEPS)
def test_nothing_that_changed_is_missed(keys: list[int], steps: list[tuple[str, int]]) -> None:
    before = {key: object() for key in keys}
    after = dict(before)
    for step, key in steps:
        if step == "set":
            after[key] = object()
        elif (value := after.pop(key, None)) is not None and step == "move":
            after[key] = value
    assert {key for key in after if before.get(key) is not after[key]} <= changed(before, after) <= after.keys()


def test_of_one_that_changed_in_its_place_it_is_named_alone() -> None:
    before = {key: object() for key in range(1000)}
    assert changed(before, before | {500: object()}) == {500}
    assert changed(before, before | {1000: object()}) == {1000}
