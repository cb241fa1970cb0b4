"""The monitor on a real loop: what it reports, in which order, with what limits, and that it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from fusisd.health.lanes import AT_ONCE, Lane
from fusisd.health.monitor import PROBES_IN_FLIGHT, SCRIPTS_IN_FLIGHT, Monitor
from fusisd.health.probes import probe
from fusisd.health.states import FREE_FALLS
from fusisd.model import CheckKind, CheckSettings, CheckSpec, CheckState, CheckTarget, Health

FAST = CheckSettings(interval_s=0.02, timeout_s=0.5, rise=1, fall=2, fast_interval_s=0.01)


def at(port: int, kind: CheckKind = CheckKind.TCP, timing: CheckSettings = FAST) -> CheckTarget:
    return CheckTarget("127.0.0.1", port, CheckSpec(kind, timing=timing))


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.settimeout(5)
    return sock


def target(sock: socket.socket) -> CheckTarget:
    return at(sock.getsockname()[1])


Scenario = Callable[[Monitor, list[tuple[CheckTarget, Health]]], Awaitable[None]]


def watched(scenario: Scenario) -> None:
    async def run() -> None:
        seen: list[tuple[CheckTarget, Health]] = []
        monitor = Monitor(probe, lambda t, h: seen.append((t, h)), time.monotonic)
        try:
            async with asyncio.timeout(20):
                await scenario(monitor, seen)
        finally:
            await monitor.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_the_monitor_reports_up_down_and_up_again_and_nothing_between() -> None:
    async def scenario(monitor: Monitor, seen: list[tuple[CheckTarget, Health]]) -> None:
        sock = listening()
        where = target(sock)
        monitor.want(frozenset({where}))
        await until(lambda: len(seen) == 1)
        sock.close()
        await until(lambda: len(seen) == 2)
        with socket.create_server(("127.0.0.1", where.port)):
            await until(lambda: len(seen) == 3)
        assert [health.state for _, health in seen[:3]] == [CheckState.UP, CheckState.DOWN, CheckState.UP]
        assert seen[1][1].reason == "connection refused"

    watched(scenario)


def test_a_target_that_is_wanted_no_more_is_probed_no_more() -> None:
    async def scenario(monitor: Monitor, seen: list[tuple[CheckTarget, Health]]) -> None:
        with listening() as kept, listening() as dropped:
            monitor.want(frozenset({target(kept), target(dropped)}))
            await until(lambda: len(seen) == 2)
            monitor.want(frozenset({target(kept)}))
            gone = target(dropped)
        await until(lambda: seen[-1][1].state is CheckState.DOWN)
        assert gone not in [where for where, health in seen if health.state is CheckState.DOWN]

    watched(scenario)


def test_a_defect_in_a_probe_is_a_failed_probe(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(target: CheckTarget, timeout_s: float) -> str:
        raise ZeroDivisionError

    async def run() -> None:
        seen: list[Health] = []
        monitor = Monitor(broken, lambda _, health: seen.append(health), time.monotonic)
        monitor.want(frozenset({at(1)}))
        async with asyncio.timeout(10):
            await until(lambda: bool(seen))
        await monitor.close()
        assert seen[0].state is CheckState.DOWN
        assert monitor.errors >= 2

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text


def test_a_probe_that_could_not_be_made_changes_no_state(caplog: pytest.LogCaptureFixture) -> None:
    results: list[str | OSError] = ["", OSError(errno.EMFILE, "Too many open files")]

    async def probing(target: CheckTarget, timeout_s: float) -> str:
        result = results.pop(0) if len(results) > 1 else results[0]
        if isinstance(result, OSError):
            asked.append(result)
            raise result
        return result

    async def run() -> None:
        monitor = Monitor(probing, lambda _, health: seen.append(health), time.monotonic)
        monitor.want(frozenset({at(1)}))
        async with asyncio.timeout(10):
            await until(lambda: len(asked) >= 5)
        await monitor.close()

    asked: list[OSError] = []
    seen: list[Health] = []
    asyncio.run(run())
    assert [health.state for health in seen] == [CheckState.UP, CheckState.UP]
    assert [health.reason for health in seen] == ["", "this machine cannot ask: Too many open files"]
    assert seen[0].since_s == seen[1].since_s
    assert caplog.text.count("states stay as they are") == 1


def test_probes_in_flight_are_limited_and_each_target_has_one() -> None:
    async def run() -> None:
        flying: list[CheckTarget] = []
        most = 0
        landing = asyncio.Event()

        async def probing(target: CheckTarget, timeout_s: float) -> str:
            nonlocal most
            flying.append(target)
            most = max(most, len(flying))
            await landing.wait()
            flying.remove(target)
            return ""

        targets = frozenset(at(port) for port in range(1, PROBES_IN_FLIGHT + 101))
        up: set[CheckTarget] = set()
        monitor = Monitor(probing, lambda where, _: up.add(where), time.monotonic)
        monitor.want(targets)
        monitor.want(targets)
        async with asyncio.timeout(20):
            await until(lambda: len(flying) == PROBES_IN_FLIGHT)
            landing.set()
            await until(lambda: up == targets)
        await monitor.close()
        assert most == PROBES_IN_FLIGHT
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_targets_that_are_new_together_are_not_probed_in_step() -> None:
    async def run() -> list[float]:
        seconds: list[float] = []
        rounds: dict[CheckTarget, int] = {}
        began_s = time.monotonic()

        async def probing(target: CheckTarget, timeout_s: float) -> str:
            rounds[target] = rounds.get(target, 0) + 1
            if rounds[target] == 2:
                seconds.append(time.monotonic() - began_s)
            return ""

        monitor = Monitor(probing, lambda *_: None, time.monotonic)
        monitor.want(frozenset(at(port, timing=CheckSettings(interval_s=0.5)) for port in range(1, 51)))
        async with asyncio.timeout(10):
            await until(lambda: len(seconds) == 50)
        await monitor.close()
        return seconds

    seconds = asyncio.run(run())
    assert max(seconds) - min(seconds) > 0.25


def test_closing_while_probes_hang_leaves_no_task() -> None:
    async def hanging(target: CheckTarget, timeout_s: float) -> str:
        await asyncio.Event().wait()
        return ""

    async def run() -> None:
        monitor = Monitor(hanging, lambda *_: None, time.monotonic)
        monitor.want(frozenset(at(port) for port in range(1, 11)))
        await asyncio.sleep(0)
        monitor.want(frozenset())
        await monitor.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


async def passing(target: CheckTarget, timeout_s: float) -> str:
    return ""


def test_each_target_is_asked_as_its_own_check_says() -> None:
    """One that is asked seldom with a long limit beside one that is asked often."""

    async def run() -> None:
        asked: dict[CheckTarget, list[float]] = {}

        async def probing(target: CheckTarget, timeout_s: float) -> str:
            asked.setdefault(target, []).append(timeout_s)
            return ""

        seldom, often = at(1, timing=replace(FAST, interval_s=3600.0, timeout_s=7.0)), at(1)
        monitor = Monitor(probing, lambda *_: None, time.monotonic)
        monitor.want(frozenset({seldom, often}))
        async with asyncio.timeout(10):
            await until(lambda: len(asked.get(often, ())) >= 5)
        await monitor.close()
        assert asked[seldom] == [7.0]
        assert set(asked[often]) == {0.5}

    asyncio.run(run())


def test_a_target_without_a_check_is_never_asked() -> None:
    async def run() -> None:
        up: list[CheckTarget] = []
        monitor = Monitor(passing, lambda where, _: up.append(where), time.monotonic)
        unchecked, other = at(1, CheckKind.NONE), at(2)
        monitor.want(frozenset({unchecked, other}))
        async with asyncio.timeout(10):
            await until(lambda: up == [other])
        monitor.want(frozenset({other}))
        monitor.want(frozenset({unchecked}))
        await monitor.close()
        assert up == [other]

    asyncio.run(run())


def test_scripts_have_slots_of_their_own_and_hold_up_nobody() -> None:
    async def run() -> None:
        flying = 0
        up: set[CheckTarget] = set()

        async def probing(target: CheckTarget, timeout_s: float) -> str:
            nonlocal flying
            if target.spec.kind is CheckKind.SCRIPT:
                flying += 1
                await asyncio.Event().wait()
            return ""

        monitor = Monitor(probing, lambda where, _: up.add(where), time.monotonic)
        others = frozenset(at(port) for port in range(1, 101))
        monitor.want(others | {at(port, CheckKind.SCRIPT) for port in range(1, 101)})
        async with asyncio.timeout(10):
            await until(lambda: up == others)
        assert flying == SCRIPTS_IN_FLIGHT
        await monitor.close()

    asyncio.run(run())


def test_a_target_that_comes_again_begins_anew() -> None:
    async def run() -> None:
        seen: list[CheckState] = []
        monitor = Monitor(passing, lambda _, health: seen.append(health.state), time.monotonic)
        async with asyncio.timeout(10):
            for times in (1, 2, 3):
                monitor.want(frozenset({at(1)}))
                await until(lambda: len(seen) == times)  # noqa: B023 – awaited before the next
                monitor.want(frozenset())
        await monitor.close()
        assert seen == [CheckState.UP] * 3

    asyncio.run(run())


def test_whoever_hears_of_a_change_may_want_something_else_at_once() -> None:
    async def run() -> None:
        seen: list[CheckTarget] = []

        def changed(where: CheckTarget, health: Health) -> None:
            seen.append(where)
            monitor.want(frozenset({at(2)}) if where == at(1) else frozenset())

        monitor = Monitor(passing, changed, time.monotonic)
        monitor.want(frozenset({at(1)}))
        async with asyncio.timeout(10):
            await until(lambda: seen == [at(1), at(2)])
        await monitor.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_a_target_that_flaps_is_held_down_and_the_reason_says_so() -> None:
    async def run() -> None:
        seen: list[Health] = []

        async def flapping(target: CheckTarget, timeout_s: float) -> str:
            if seen and seen[-1].state is CheckState.UP:
                return "refused"
            return ""

        timing = replace(FAST, fall=1)
        monitor = Monitor(flapping, lambda _, health: seen.append(health), time.monotonic)
        monitor.want(frozenset({at(1, timing=timing)}))
        async with asyncio.timeout(10):
            await until(lambda: bool(seen) and seen[-1].reason.startswith("passes, but fell"))
        await monitor.close()
        assert sum(health.reason == "refused" for health in seen) == FREE_FALLS + 1
        assert seen[-1].state is CheckState.DOWN

    asyncio.run(run())


def test_more_probes_than_can_be_made_stretch_the_intervals_visibly(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every slot is taken for longer than the interval; with fewer targets all is in time again."""
    monkeypatch.setattr("fusisd.health.monitor.MEASURED_EVERY_S", 0.1)

    async def run() -> None:
        async def slow(target: CheckTarget, timeout_s: float) -> str:
            await asyncio.sleep(0.2)
            return ""

        monitor = Monitor(slow, lambda *_: None, time.monotonic)
        assert monitor.stretch == 1.0
        monitor.want(frozenset(at(port) for port in range(1, 4 * PROBES_IN_FLIGHT)))
        async with asyncio.timeout(60):
            await until(lambda: monitor.stretch > 1.3 and monitor.per_second > 0)
            monitor.want(frozenset({at(1)}))
            await until(lambda: monitor.stretch == 1.0)
        await monitor.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    # As often as it began, not once a second; the measured seconds are short here, so it may begin twice.
    begun, over = (caplog.text.count(words) for words in ("intervals stretch", "probes are made in time again"))
    assert 1 <= begun == over <= 3


def test_a_lane_begins_few_in_one_turn_of_the_loop_and_in_order() -> None:
    async def run() -> None:
        begun: list[int] = []

        def begin(number: int) -> bool:
            begun.append(number)
            return number % 2 == 0  # odd ones are wanted no more: they take no slot

        lane: Lane[int] = Lane(100, begin)
        for number in range(150):
            lane.join(number)
        assert begun == []
        await asyncio.sleep(0)
        assert begun == list(range(AT_ONCE))
        async with asyncio.timeout(10):
            await until(lambda: len(begun) == 150)
        assert begun == list(range(150))
        assert lane.waiting == 0
        for number in range(100):
            lane.join(2 * number)
        async with asyncio.timeout(10):
            await until(lambda: lane.waiting == 75)
            lane.leave()
            await until(lambda: lane.waiting == 74)

    asyncio.run(run())
