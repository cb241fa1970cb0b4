"""Rise and fall as pure logic, probes against real sockets, the monitor on a real loop."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fusisd.health.monitor import PROBES_IN_FLIGHT, Monitor, Record, judged, pause_s
from fusisd.health.probes import tcp_probe
from fusisd.model import CheckSettings, CheckState, CheckTarget, Health

SETTINGS = CheckSettings(interval_s=1.0, rise=2, fall=3, fast_interval_s=0.25)
FAST = CheckSettings(interval_s=0.02, timeout_s=0.5, rise=1, fall=2, fast_interval_s=0.01)


def after(results: str) -> Record:
    record = Record()
    for now, result in enumerate(results):
        record = judged(record, "" if result == "+" else "refused", SETTINGS, float(now))
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
def test_probes_come_faster_while_result_and_state_disagree(results: str, pause: float) -> None:
    assert pause_s(after(results), SETTINGS) == pause


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.settimeout(5)
    return sock


def target(sock: socket.socket) -> CheckTarget:
    return CheckTarget("127.0.0.1", sock.getsockname()[1])


def test_a_probe_passes_where_something_listens_and_says_why_not_elsewhere() -> None:
    with listening() as sock:
        assert asyncio.run(tcp_probe(target(sock), 2.0)) == ""
        gone = target(sock)
    assert asyncio.run(tcp_probe(gone, 2.0)) == "connection refused"


def test_a_server_that_does_not_accept_in_time_fails() -> None:
    """A full backlog drops SYNs: what a dead host looks like."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        assert asyncio.run(tcp_probe(target(sock), 0.3)) == "no answer within 0.3 s"
        for filler in fillers:
            filler.close()


def in_time_wait(port: int) -> int:
    """Connections of this port in state 06 (proc(5), /proc/net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "06" and f":{port:04X}" in row[1] + row[2] for row in rows)


def test_probes_leave_nothing_in_time_wait() -> None:
    async def probe(where: CheckTarget) -> None:
        for _ in range(20):
            assert await tcp_probe(where, 2.0) == ""

    with socket.create_server(("127.0.0.1", 0), backlog=64) as sock:
        asyncio.run(probe(target(sock)))
        assert in_time_wait(target(sock).port) == 0


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_probe_that_this_machine_cannot_make_says_nothing_of_the_server(few_descriptors: None) -> None:
    probing = tcp_probe(CheckTarget("127.0.0.1", 1), 1.0)
    with pytest.raises(OSError, match="Too many open files"):
        probing.send(None)  # no loop: it would need descriptors of its own


Scenario = Callable[[Monitor, list[tuple[CheckTarget, Health]]], Awaitable[None]]


def watched(scenario: Scenario) -> None:
    async def run() -> None:
        seen: list[tuple[CheckTarget, Health]] = []
        monitor = Monitor(tcp_probe, lambda t, h: seen.append((t, h)), time.monotonic, FAST)
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
        monitor = Monitor(broken, lambda _, health: seen.append(health), time.monotonic, FAST)
        monitor.want(frozenset({CheckTarget("127.0.0.1", 1)}))
        async with asyncio.timeout(10):
            await until(lambda: bool(seen))
        await monitor.close()
        assert seen[0].state is CheckState.DOWN
        assert monitor.errors >= 2

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text


def test_a_probe_that_could_not_be_made_changes_no_state(caplog: pytest.LogCaptureFixture) -> None:
    results: list[str | OSError] = ["", OSError(errno.EMFILE, "Too many open files")]

    async def probe(target: CheckTarget, timeout_s: float) -> str:
        result = results.pop(0) if len(results) > 1 else results[0]
        if isinstance(result, OSError):
            asked.append(result)
            raise result
        return result

    async def run() -> None:
        monitor = Monitor(probe, lambda _, health: seen.append(health.state), time.monotonic, FAST)
        monitor.want(frozenset({CheckTarget("127.0.0.1", 1)}))
        async with asyncio.timeout(10):
            await until(lambda: len(asked) >= 5)
        await monitor.close()

    asked: list[OSError] = []
    seen: list[CheckState] = []
    asyncio.run(run())
    assert seen == [CheckState.UP]
    assert caplog.text.count("its state stays as it is") == 1


def test_probes_in_flight_are_limited_and_each_target_has_one() -> None:
    async def run() -> None:
        flying: list[CheckTarget] = []
        most = 0
        landing = asyncio.Event()

        async def probe(target: CheckTarget, timeout_s: float) -> str:
            nonlocal most
            flying.append(target)
            most = max(most, len(flying))
            await landing.wait()
            flying.remove(target)
            return ""

        targets = frozenset(CheckTarget("127.0.0.1", port) for port in range(1, PROBES_IN_FLIGHT + 101))
        up: set[CheckTarget] = set()
        monitor = Monitor(probe, lambda where, _: up.add(where), time.monotonic, FAST)
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

        async def probe(target: CheckTarget, timeout_s: float) -> str:
            rounds[target] = rounds.get(target, 0) + 1
            if rounds[target] == 2:
                seconds.append(time.monotonic() - began_s)
            return ""

        monitor = Monitor(probe, lambda *_: None, time.monotonic, CheckSettings(interval_s=0.5))
        monitor.want(frozenset(CheckTarget("127.0.0.1", port) for port in range(1, 51)))
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
        monitor = Monitor(hanging, lambda *_: None, time.monotonic, FAST)
        monitor.want(frozenset(CheckTarget("127.0.0.1", port) for port in range(1, 11)))
        await asyncio.sleep(0)
        monitor.want(frozenset())
        await monitor.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
