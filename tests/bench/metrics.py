"""What a scrape of /metrics costs at 5,000 destinations: `python -m tests.bench.metrics [--shapes 1000x5 5x1000]`.

fusisd's core on a real loop, its web application on the real server, a client that scrapes over loopback with fresh
counters each time. On real IPVS where there is some (in the lab guest, whose one CPU is slow); else on the fake kernel
with its answers remembered, so that the reading is our work without the kernel's. Figures: the scrape in wall time and in
this process's CPU time, client included, which is what counts on a machine that others use; of that the reading (the
loop's work, in slices) and the text; how late the loop was meanwhile, by a task that wants to run each millisecond.
Does not: measure the network.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import pairwise
from statistics import median
from typing import Any

from fusisd.bridge import Bridge
from fusisd.committer import Committer
from fusisd.control import Control
from fusisd.counts import Counts
from fusisd.inbox import Beginning, Told
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.statistics import Statistics
from fusisd.web import families
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.server import TcpListener, WebServer
from pyipvs import IPVS, ServiceKey, TableProbe
from pyipvs.testing import FakeKernel
from tests.bench.core import World, clocked, fresh_network, intent_of
from tests.bench.table import Shape
from tests.lab import here

SCRAPES = 20
LIMIT_MS = 100.0


class Remembered(FakeKernel):
    """Its dumps are made once."""

    def __init__(self) -> None:
        super().__init__()
        self.dumps: dict[tuple[int, bytes], list[memoryview]] | None = None

    def dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
        if self.dumps is None:
            return super().dump(command, attributes)
        key = (command, bytes(attributes))
        if key not in self.dumps:
            self.dumps[key] = list(super().dump(command, attributes))
        return iter(self.dumps[key])


class Unchanged:
    """In the place of /proc/net/ip_vs."""

    def services(self) -> dict[ServiceKey, bytes]:
        return {}


class Bench:
    """The core with one table, on the loop that runs."""

    def __init__(self, shape: Shape, real: bool) -> None:
        fake = Remembered()
        probe: Any = TableProbe() if real else Unchanged()
        self.kernel = IpvsKernel(IPVS() if real else IPVS(transport=fake), probe)
        intent, counts = intent_of(shape, checked=False), Counts()
        told = Told(*(lambda _: None for _ in range(4)))
        owned = frozenset(service.key for service in intent.services.values())
        beginning = Beginning(intent, owned, serf_expected=False)
        self.control = Control(self.kernel, World(), World(), time.monotonic, beginning, told, counts)
        self.control.look()
        self.control.start()
        fake.dumps = {}
        self.statistics = Statistics(self.kernel, time.monotonic)
        committer: Committer = None  # type: ignore[assignment]  # nobody changes anything
        loop = asyncio.get_running_loop()
        self.bridge = Bridge(loop, self.control, committer, self.statistics, counts, time.monotonic)
        policy = WritePolicy.for_token("x" * 32)
        self.server = WebServer(make_app(self.bridge, policy), [TcpListener("127.0.0.1", 0)])

    def scrape(self, gzip: bool) -> tuple[float, float, int]:
        """Seconds by the clock and of CPU, and bytes over the wire."""
        (listener,) = self.server.addresses
        assert isinstance(listener, TcpListener)
        began, began_cpu = time.perf_counter(), time.process_time()
        connection = HTTPConnection("127.0.0.1", listener.port, timeout=60)
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"} if gzip else {})
        answer = connection.getresponse()
        size = len(answer.read())
        connection.close()
        if answer.status != 200:
            raise AssertionError(f"status {answer.status}")
        return time.perf_counter() - began, time.process_time() - began_cpu, size

    def kernel_time(self) -> float:
        """Reading at one go."""
        return clocked(lambda: list(self.kernel.scan()))

    async def scrapes(self, gzip: bool) -> str:
        """Each with fresh counters: the figures."""
        took, cpu, late, size = list[float](), list[float](), list[float](), 0
        for _ in range(SCRAPES):
            self.statistics._next_s = float("-inf")
            ticks = list[float]()
            ticking = asyncio.ensure_future(tick(ticks))
            seconds, of_cpu, size = await asyncio.to_thread(self.scrape, gzip)
            ticking.cancel()
            took.append(seconds)
            cpu.append(of_cpu)
            late.append(max((after - before - 0.001 for before, after in pairwise(ticks)), default=0.0))
            await asyncio.sleep(0.05)
        shown = [
            f"best {min(one) * 1e3:.1f}, p50 {median(one) * 1e3:.1f}, max {max(one) * 1e3:.1f} ms"
            for one in (took, cpu, late)
        ]
        return f"{shown[0]}; CPU {shown[1]}; loop late {shown[2]}; {size / 1e6:.2f} MB"


async def tick(ticks: list[float]) -> None:
    """Note the time each millisecond."""
    while True:
        ticks.append(time.perf_counter())
        await asyncio.sleep(0.001)


async def measure(shape: Shape, real: bool) -> None:
    """Print the figures of one shape."""
    bench = Bench(shape, real)
    bench.server.start()
    running = asyncio.ensure_future(bench.control.run())
    first, *_ = await asyncio.to_thread(bench.scrape, False)
    gc.collect()
    gc.freeze()  # as the daemon does once it has started
    plain, packed = await bench.scrapes(False), await bench.scrapes(True)
    snapshot, reading = bench.control.snapshot, bench.statistics.last
    text = median(clocked(lambda: families.exposition(snapshot, reading)) for _ in range(10))
    read = median([bench.kernel_time() for _ in range(10)])
    running.cancel()
    await asyncio.to_thread(bench.server.stop)
    print(f"\n{shape}, {'real IPVS' if real else 'fake kernel'}")
    print(f"  {'the first scrape, with the import':36}{first * 1e3:.1f} ms")
    print(f"  {'scrape':36}{plain}")
    print(f"  {'scrape, gzip':36}{packed}")
    print(f"  {'of that reading, on the loop':36}{read * 1e3:.1f} ms")
    print(f"  {'and the text of the table':36}{text * 1e3:.1f} ms", flush=True)


def main() -> int:
    """Measure each shape."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.metrics")
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=[Shape(1000, 5), Shape(50, 100), Shape(5, 1000)])
    logging.disable(logging.CRITICAL)
    real = os.geteuid() == 0 and here.main() == 0
    for shape in parser.parse_args().shapes:
        if real:
            fresh_network()
        asyncio.run(measure(shape, real))
    return 0


if __name__ == "__main__":
    sys.exit(main())
