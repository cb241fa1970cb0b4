"""What the control core costs on a large table: `python -m tests.bench.core [--shapes 1000x10 10x1000] [--runs 5]`.

In the lab guest, on real IPVS, in one process: control with the real kernel port, and host and checks that are told and do
nothing, so that what is timed is the core. Each shape in a network namespace of its own. Figures: start with the table
present (read, target, plan, first snapshot); a turn that changes nothing; from one observed change to the kernel changed;
the same for a command, with the store's share apart; from somebody's hand on the kernel to its repair; 1000 destinations
changing health at once; the full build beside pyipvs' own load of the same table; resident memory; the longest turn.
Does not: speak HTTP or Serf.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from subprocess import run
from typing import Any, NamedTuple

from fusisd.commands import UpdateDestination
from fusisd.committer import Committer
from fusisd.control import Control
from fusisd.door import Door
from fusisd.inbox import Beginning, Committed, ProbeChanged, Told
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.limits import kernel_destination, kernel_service
from fusisd.model import CheckSpec, CheckState, CheckTarget, Destination, Health, HostSeen, Intent, Service
from fusisd.ports import Change
from fusisd.store.sqlite import SqliteIntents, SqliteLocal, open_database
from pyipvs import IPVS, AddDestination, AddService, ForwardingMethod, Protocol, ServiceKey, TableProbe
from tests.bench.table import PORT, Shape
from tests.lab.netns import unshare_network

REACTIONS = 200
COMMANDS = 1000
AT_ONCE = 1000
REPAIRS = 40
HIDDEN_REPAIRS = 8
REPAIR_LIMIT_S = 300.0
LIMIT_MS = 100.0
CHECK = CheckSpec(path_check=False)  # nobody is there to be asked through a VIP


class World:
    """Host and checks that are told, and answer nothing."""

    async def answers(self, address: str) -> str:
        return ""

    async def own(self) -> frozenset[str]:
        return frozenset()

    def want(self, wanted: Any) -> None:
        self.wanted = wanted

    @property
    def figures(self) -> dict[str, float]:
        return {}


def intent_of(shape: Shape, checked: bool = True) -> Intent:
    """Services with a check (or without), and their destinations."""
    services = {}
    for number in range(shape.services):
        rows = [n for n in range(number * shape.each, (number + 1) * shape.each)]
        destinations = {f"d{n}": Destination(f"d{n}", shape.real(n), PORT, 1, ForwardingMethod.ROUTE) for n in rows}
        key = ServiceKey(Protocol.TCP, shape.service(number), PORT)
        check = CHECK if checked else None
        services[f"s{number}"] = Service(f"s{number}", key, "rr", destinations=destinations, check=check)
    return Intent(services, 1)


class Running(NamedTuple):
    """Seconds: until somebody's deletion, or hidden change, was repaired; of commands besides the store, and the store's."""

    gone: list[float]
    odd: list[float]
    commands: list[float]
    stored: list[float]


class Bench:
    """One shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.intent = shape, intent_of(shape)
        self.keys = frozenset(service.key for service in self.intent.services.values())
        self.ipvs = IPVS()
        self.host, self.checks = World(), World()
        self.control = self.made(Intent(), frozenset())

    def made(self, intent: Intent, owned: frozenset[ServiceKey]) -> Control:
        told = Told(lambda _: None, lambda _: None, lambda _: None, lambda _: None)
        beginning = Beginning(intent, owned, serf_expected=False)
        control = Control(IpvsKernel(self.ipvs, TableProbe()), self.host, self.checks, time.monotonic, beginning, told)
        control.look()
        return control

    def settle(self) -> float:
        """Turns until none is left over; the longest, in seconds."""
        longest = 0.0
        while True:
            longest = max(longest, clocked(self.control.turn))
            if not self.control._pending and not self.control._touched and not self.control._look._stale:
                return longest

    def build(self) -> float:
        """Everything, unchecked, into an empty kernel by a start, as after a reboot. Seconds."""
        gc.disable()  # as the daemon does while it starts
        began = time.perf_counter()
        control = self.made(intent_of(self.shape, checked=False), self.keys)
        control.start()
        took = time.perf_counter() - began
        gc.enable()
        self.check()
        return took

    def import_whole(self) -> tuple[float, float]:
        """The same in one commit to a daemon that runs. Seconds in all, and the longest turn."""
        self.control.start()
        gc.collect()
        gc.freeze()  # as the daemon has, before it serves anybody
        self.control.enter(HostSeen(frozenset(key.address or "" for key in self.keys)))
        began = time.perf_counter()
        self.control.enter(Committed(intent_of(self.shape, checked=False), self.keys))
        longest = self.settle()
        took = time.perf_counter() - began
        self.check()
        return took, longest

    def check(self) -> None:
        """Nothing may be missing from the kernel."""
        if sum(len(entry.destinations) for entry in self.ipvs.scan(statistics=False)) != self.shape.destinations:
            raise AssertionError("not everything was built")

    def start_again(self) -> float:
        """As after our restart: the table is there."""
        began = time.perf_counter()
        control = self.made(self.intent, self.keys)
        control.start()
        took = time.perf_counter() - began
        up = Health(CheckState.UP, time.monotonic())
        for check in self.checks.wanted:
            control.enter(ProbeChanged(check, up))
        self.control = control
        self.settle()
        return took

    def reaction(self, number: int) -> float:
        """A check turns, and the kernel has another weight."""
        address = self.shape.real(number * 37 % self.shape.destinations)
        check = CheckTarget(address, PORT, CHECK)
        known = self.control._world.health[check].state
        found = Health(CheckState.DOWN if known is CheckState.UP else CheckState.UP, time.monotonic(), "refused")
        before = self.control.snapshot.status["ops"]
        self.control.enter(ProbeChanged(check, found))
        self.control.turn()
        ops = self.control.snapshot.status["ops"]
        assert ops == before + 1, f"{address} {known}: {ops} operations after {before}"
        took = self.control._counts.reactions_s[-1]
        self.settle()
        return took

    def many_at_once(self) -> tuple[float, float]:
        """1000 checks fail in the same moment. Seconds until the kernel has it, and the longest turn."""
        began, longest = time.perf_counter(), 0.0
        for number in range(min(AT_ONCE, self.shape.destinations // 2)):
            check = CheckTarget(self.shape.real(number), PORT, CHECK)
            self.control.enter(ProbeChanged(check, Health(CheckState.DOWN, time.monotonic(), "refused")))
        longest = self.settle()
        return time.perf_counter() - began, longest

    async def _repairs(self) -> tuple[list[float], list[float]]:
        """Somebody deletes a destination of ours, or gives one of another service a threshold (which /proc/net/ip_vs does
        not show): seconds until the kernel has it as it was, of each sort."""
        gone, odd = list[float](), list[float]()
        for number in range(REPAIRS):
            await asyncio.sleep(number * 0.37 % 1)  # at another moment of the second each time
            key, one = self._serving(number * 7)
            self.ipvs.delete_destination(key, one)
            gone.append(await self._repaired(key, one))
            if number < HIDDEN_REPAIRS:
                key, one = self._serving(number * 7 + self.shape.services // 2 + 1)
                self.ipvs.update_destination(key, replace(one, upper_threshold=9))
                odd.append(await self._repaired(key, one))
        return gone, odd

    def _serving(self, number: int) -> tuple[ServiceKey, Any]:
        """A service, and a destination of it that does not leave."""
        key = self.intent.services[f"s{number % self.shape.services}"].key
        return key, next(row.destination for row in self.ipvs.destinations(key) if row.destination.weight)

    async def _repaired(self, key: ServiceKey, one: Any) -> float:
        """Seconds until the destination is as it was."""
        began = time.perf_counter()
        while all(row.destination != one for row in self.ipvs.destinations(key)):
            if time.perf_counter() - began > REPAIR_LIMIT_S:
                raise AssertionError(f"{one} of {key} was not repaired")
            await asyncio.sleep(0.01)
        return time.perf_counter() - began

    async def running(self, directory: Path) -> Running:
        """What takes control's loop."""
        task = asyncio.ensure_future(self.control.run())
        gone, odd = await self._repairs()
        commands, stored = await self._commands(directory)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return Running(gone, odd, commands, stored)

    async def _commands(self, directory: Path) -> tuple[list[float], list[float]]:
        """Weights set by commands: seconds from submit to answer besides the store's, and the store's."""
        executor, shares = ThreadPoolExecutor(1), list[float]()
        loop = asyncio.get_running_loop()

        async def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = await loop.run_in_executor(executor, lambda: function(*args, **kwargs))
            shares.append(time.perf_counter() - began)
            return result

        path = directory / "fusisd.db"
        database = await call(open_database, path)
        intents = SqliteIntents(database, path)
        local = await call(SqliteLocal, database, path, "bench")
        revision = await call(intents.commit, 0, Change(self.intent.services))
        intent = replace(self.intent, revision=revision)
        committer = Committer(intents, local, call, intent, {}, time.monotonic)
        committer.attach(self.control, Door(self.control, self.host))
        task = asyncio.ensure_future(committer.run())
        took, stored = list[float](), list[float]()
        self.control.enter(HostSeen(self.control.target.host.vips))
        for number in range(COMMANDS):
            shares.clear()
            name, n = f"s{number % self.shape.services}", number % self.shape.services * self.shape.each
            one = replace(self.intent.services[name].destinations[f"d{n}"], weight=number % 7 + 2)
            began = time.perf_counter()
            await committer.submit(UpdateDestination(name, one), "bench")
            stored.append(sum(shares))
            took.append(time.perf_counter() - began - stored[-1])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        executor.shutdown()
        return took, stored


def clocked(work: Any) -> float:
    """The seconds it took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def library_load(intent: Intent) -> tuple[float, float]:
    """The same table by pyipvs alone: making the values and sending them, and the sending alone. Seconds."""
    began = time.perf_counter()
    changes: list[Any] = [AddService(kernel_service(service)) for service in intent.services.values()]
    for service in intent.services.values():
        changes += [AddDestination(service.key, kernel_destination(one)) for one in service.destinations.values()]
    with IPVS() as ipvs:
        sent = clocked(lambda: ipvs.apply(changes))
    return time.perf_counter() - began, sent


def fresh_network() -> None:
    """An empty table. The one before is emptied first: else the kernel does that meanwhile, under the same lock."""
    with IPVS() as ipvs:
        ipvs.flush()
    unshare_network()
    run(["ip", "link", "set", "lo", "up"], check=True)


def resident_mb() -> float:
    """This process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


def measure(shape: Shape) -> None:
    """Print the figures of one shape."""
    fresh_network()
    load, sent = library_load(intent_of(shape))
    fresh_network()
    built = Bench(shape).build()
    fresh_network()
    bench = Bench(shape)
    imported, longest = bench.import_whole()
    memory = resident_mb()
    started = bench.start_again()
    gc.collect()
    gc.freeze()  # as the daemon does once it has started
    idle = sorted(clocked(bench.control.turn) for _ in range(50))
    reactions = [bench.reaction(number) for number in range(REACTIONS)]
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(bench.running(Path(directory)))
    at_once, longest_then = bench.many_at_once()
    figures = [
        ("pyipvs' load", f"{load:.3f} s, of that the sending {sent:.3f} s"),
        ("full build at the start", f"{built:.3f} s, {built / load:.2f} x pyipvs' load, {built / sent:.2f} x its sending"),
        ("imported whole, in turns", f"{imported:.3f} s, longest turn {longest * 1e3:.1f} ms"),
        ("start with the table present", f"{started:.3f} s"),
        ("turn that changes nothing", f"p50 {idle[25] * 1e3:.2f} ms, max {idle[-1] * 1e3:.2f} ms"),
        ("observed change to kernel", spread(reactions)),
        ("command to kernel but the store", spread(found.commands)),
        ("its store", spread(found.stored)),
        ("somebody's deletion to repair", spread(found.gone)),
        ("somebody's threshold to repair", spread(found.odd)),
        (f"{AT_ONCE} checks fail at once", f"{at_once:.3f} s, longest turn {longest_then * 1e3:.1f} ms"),
        ("resident memory", f"{memory:.1f} MB"),
    ]
    print(f"\n{shape}")
    for name, value in figures:
        print(f"  {name:32}{value}", flush=True)


def spread(values: list[float]) -> str:
    """Seconds as text: median and 99th percentile."""
    ordered = sorted(values)
    return f"p50 {ordered[len(ordered) // 2] * 1e3:.2f} ms, p99 {ordered[int(len(ordered) * 0.99)] * 1e3:.2f} ms"


def main() -> int:
    """Measure each shape."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.core")
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=[Shape(1000, 10), Shape(10, 1000)])
    logging.disable(logging.CRITICAL)
    for shape in parser.parse_args().shapes:
        measure(shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
