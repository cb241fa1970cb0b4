"""The life of a check: the table is whole, and any sequence of results leaves its promises true."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusisd.health.states import (
    FREE_FALLS,
    HOLD_MAX_S,
    HOLD_S,
    STATE,
    TABLE,
    UNDECIDED,
    WINDOW_S,
    Event,
    Phase,
    Record,
    could_not_ask,
    diagram,
    hold_s,
    judged,
    pause_s,
)
from fusisd.health.stretch import IN_TIME_S, LATE_S, MOST, Load, stretched
from fusisd.model import CheckSettings, CheckState

SETTINGS = CheckSettings(interval_s=1.0, rise=2, fall=3, fast_interval_s=0.25)
QUICK = CheckSettings(rise=1, fall=1)


def after(results: str, settings: CheckSettings = SETTINGS) -> Record:
    """One result a second: + passes, - fails, anything else is the reason of a failure."""
    record = Record()
    for now, result in enumerate(results):
        reason = {"+": "", "-": "refused"}.get(result, result)
        record = judged(record, reason, settings, float(now))
    return record


@pytest.mark.parametrize(
    ("results", "state", "since"),
    [
        ("", CheckState.UNKNOWN, 0.0),
        ("+", CheckState.UNKNOWN, 0.0),
        ("++", CheckState.UP, 1.0),
        ("--", CheckState.UNKNOWN, 0.0),
        ("---", CheckState.DOWN, 2.0),
        ("++--+--", CheckState.UP, 1.0),
        ("++---", CheckState.DOWN, 4.0),
        ("++---+", CheckState.DOWN, 4.0),
        ("++---++", CheckState.UP, 6.0),
        ("+-+-+-+", CheckState.UNKNOWN, 0.0),
    ],
)
def test_rise_and_fall_decide(results: str, state: CheckState, since: float) -> None:
    health = after(results).health
    assert (health.state, health.since_s) == (state, since)


@pytest.mark.parametrize(
    ("results", "pause"), [("", 0.25), ("+", 0.25), ("++", 1.0), ("++-", 0.25), ("++---", 1.0), ("++---+", 0.25)]
)
def test_probes_come_faster_while_few_more_results_decide(results: str, pause: float) -> None:
    assert pause_s(after(results), SETTINGS) == pause


def test_the_reason_follows_what_is_wrong_as_slowly_as_a_decision() -> None:
    assert after("++---").health.reason == "refused"
    assert after("++---xx").health.reason == "refused"
    assert after("++---xxx").health.reason == "x"
    assert after("++---xxx").health.since_s == 4.0
    assert after("++---xyxyxyxyxy").health.reason == "refused"


def test_a_probe_that_could_not_be_made_is_told_and_changes_nothing_else() -> None:
    record = after("++")
    unasked = could_not_ask(record, "too many open files")
    assert unasked.health.reason == "this machine cannot ask: too many open files"
    assert (unasked.health.state, unasked.health.since_s, unasked.phase) == (CheckState.UP, 1.0, Phase.UP)
    assert judged(unasked, "", SETTINGS, 9.0).health == record.health


def test_the_table_has_every_phase_and_event_and_only_counted_events_change_the_state() -> None:
    assert set(TABLE) == {(phase, event) for phase in Phase for event in Event}
    for (before, event), phase in TABLE.items():
        if STATE[phase] is not STATE[before]:
            up = STATE[phase] is CheckState.UP
            assert event in ({Event.RISEN, Event.TOO_SOON} if up else {Event.FALLEN})
        if event is Event.TOO_SOON and STATE[before] is CheckState.DOWN:
            assert phase is Phase.HELD


def test_the_diagram_draws_every_change_of_the_table() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    drawn = {tuple(line.strip().partition(":")[0].split(" --> ")) for line in lines if " --> " in line}
    changes = {(before.value, phase.value) for (before, _), phase in TABLE.items() if before is not phase}
    assert drawn == changes | {("[*]", "new")}
    assert "    down --> held: too soon" in lines
    assert "    failing: failing (up, fast interval)" in lines


def flapping(falls: int) -> tuple[Record, float]:
    """Up, then so many times down; each fall is followed by as many passes as it needs."""
    record, now_s = judged(Record(), "", QUICK, 0.0), 0.0
    for fall in range(falls):
        now_s += 1.0
        record = judged(record, "refused", QUICK, now_s)
        while fall < falls - 1 and record.health.state is CheckState.DOWN:
            now_s += 1.0
            record = judged(record, "", QUICK, now_s)
    return record, now_s


def test_a_target_that_falls_often_must_pass_for_longer_and_says_so() -> None:
    record, now_s = flapping(FREE_FALLS)
    assert judged(record, "", QUICK, now_s + 1).health.state is CheckState.UP
    record, now_s = flapping(FREE_FALLS + 1)
    fell = record.health
    record = judged(record, "", QUICK, now_s + 1)
    assert (record.health.state, record.health.since_s) == (CheckState.DOWN, fell.since_s)
    assert record.health.reason == "passes, but fell 4 times: up after 5 s in a row"
    assert judged(record, "", QUICK, now_s + HOLD_S + 0.9).health.state is CheckState.DOWN
    assert judged(record, "", QUICK, now_s + HOLD_S + 1).health.state is CheckState.UP
    again = judged(judged(record, "refused", QUICK, now_s + 2), "", QUICK, now_s + HOLD_S + 1)
    assert again.health.state is CheckState.DOWN, "a failure begins the time anew"


def test_what_fell_long_ago_is_forgiven() -> None:
    record, now_s = flapping(FREE_FALLS + 3)
    record = judged(record, "refused", QUICK, now_s + WINDOW_S)
    assert judged(record, "", QUICK, now_s + WINDOW_S + 1).health.state is CheckState.UP


@given(st.integers(0, 10_000))
@example(FREE_FALLS)
@example(FREE_FALLS + 1)
def test_the_hold_grows_with_the_falls_up_to_its_limit(falls: int) -> None:
    assert 0.0 <= hold_s(falls) <= hold_s(falls + 1) <= HOLD_MAX_S
    assert (hold_s(falls) == 0.0) is (falls <= FREE_FALLS)


settings = st.builds(
    CheckSettings, rise=st.integers(1, 5), fall=st.integers(1, 5), interval_s=st.just(1.0), fast_interval_s=st.just(0.25)
)
# Long runs of the same result reach the holds; single ones the counting.
results = st.lists(
    st.tuples(st.sampled_from(["", "", "refused", "503", None]), st.integers(1, 12), st.sampled_from([0.0, 0.25, 1.0, 30.0]))
)


Story = list[tuple[str | None, int, float]]


def lived(story: Story, how: CheckSettings) -> Iterator[tuple[Record, Record, list[bool], float]]:
    """Before and after each result, all results so far, and the time; None could not be asked."""
    record, now_s, past = Record(), 0.0, []
    for reason, times, gap_s in story:
        for _ in range(times):
            now_s += gap_s
            before = record
            if reason is None:
                record = could_not_ask(record, "too many open files")
            else:
                record = judged(record, reason, how, now_s)
                past.append(not reason)
            yield before, record, past, now_s


@given(results, settings)
def test_never_up_before_rise_passes_in_a_row_nor_down_before_fall_failures(story: Story, how: CheckSettings) -> None:
    for before, record, past, _ in lived(story, how):
        if record.health.state is not before.health.state:
            up = record.health.state is CheckState.UP
            assert record.health.state is not CheckState.UNKNOWN
            assert past[-(how.rise if up else how.fall) :] == [up] * (how.rise if up else how.fall)


@given(results, settings)
def test_damping_delays_the_way_up_alone_and_never_for_longer_than_its_limit(story: Story, how: CheckSettings) -> None:
    for _, record, past, now_s in lived(story, how):
        if len(past) >= how.fall and not any(past[-how.fall :]):
            assert record.health.state is CheckState.DOWN
        passed = len(past) >= how.rise and all(past[-how.rise :])
        if passed and record.unasked is None and record.health.state is not CheckState.UP:
            assert len(record.falls) > FREE_FALLS
            assert now_s - record.turned_s < HOLD_MAX_S


@given(results, settings)
def test_what_is_said_agrees_with_what_is(story: Story, how: CheckSettings) -> None:
    for before, record, past, now_s in lived(story, how):
        assert record.health.state is STATE[record.phase]
        assert record.health.since_s <= now_s
        assert record.health.reason or record.health.state is not CheckState.DOWN
        if record.health.state is before.health.state:
            assert record.health.since_s == before.health.since_s
        if record.unasked is None:
            assert record.passing is past[-1]
            agreed = record.health.state is (CheckState.UP if record.passing else CheckState.DOWN)
            assert (record.phase in UNDECIDED) is (not agreed and record.phase is not Phase.HELD)


@given(st.lists(st.booleans(), min_size=200, max_size=600))
def test_however_it_flaps_it_comes_up_few_times_within_the_window(passes: list[bool]) -> None:
    """Three free, and the holds of a window's further ones are 5 + 10 + 20 + 40 + 60 + 60 ... s."""
    record, ups = Record(), []
    for now, passing in enumerate(passes):
        before, record = record, judged(record, "" if passing else "refused", QUICK, float(now))
        if record.health.state is CheckState.UP is not before.health.state:
            ups.append(now)
    for first in ups:
        assert sum(first <= up < first + WINDOW_S for up in ups) <= 12


@given(st.floats(1.0, MOST), st.floats(0.0, 1000.0), st.floats(0.0, 1000.0))
def test_the_stretch_stays_within_its_bounds_and_moves_the_right_way(stretch: float, late_s: float, before_s: float) -> None:
    after = stretched(stretch, late_s, before_s)
    assert 1.0 <= after <= MOST
    assert after >= stretch if late_s >= IN_TIME_S else after <= stretch
    if late_s > LATE_S and late_s >= before_s and stretch < MOST:
        assert after > stretch


def test_a_loop_that_carries_a_third_of_what_is_due_comes_to_rest_near_three_and_back() -> None:
    """3000 a second are due, 1000 can be made; what is not made waits, and makes the next late."""
    load, waiting, stretches = Load(), 0.0, []
    for second in range(400):
        capacity = 1000.0 if second < 200 else 5000.0
        due = 3000.0 / load.stretch
        done = min(capacity, waiting + due)
        load.began(waiting / capacity)
        waiting = waiting + due - done
        load.turn(1.0, int(waiting))
        stretches.append(load.stretch)
    assert 2.5 < sum(stretches[100:200]) / 100 < 6.0
    assert stretches[-1] == 1.0


def test_nothing_that_begins_while_some_wait_is_late_too() -> None:
    load = Load()
    load.turn(1.0, waiting=5)
    assert load.stretch > 1.0
