"""What health checks cost and how soon they notice: `python -m tests.bench.checks [--targets 500,1000,...] [--deaths 60]`.

Needs no kernel with IPVS and no root. Carried: TCP probes a second that one loop carries, to a listener in another process
on this host's loopback, each target an address of 127/8 of its own, interval 1 s; with how late the loop was meanwhile
(a timer every 20 ms) and by how much intervals were stretched. Noticed: from a server's death to its check saying down,
interval 1 s, timeout 0.5 s, fall 2; refused (the listener is closed) and silent (its backlog is full, so SYNs are dropped).
Does not: probe through IPVS, or judge.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from fusisd.health.monitor import Monitor
from fusisd.health.probes import probe
from fusisd.model import CheckState, CheckTarget, Health

SETTLE_S, MEASURED_S = 20.0, 10.0
TICK_S = 0.02
LIMIT_S = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="500,1000,2000,3000,4000,6000,10000", help="numbers of targets")
    parser.add_argument("--deaths", type=int, default=60, help="of each kind")
    options = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, kernel {platform.release()}")
    print(f"{'targets':>8} {'probes/s':>9} {'stretch':>8} {'loop late p50':>14} {'p99':>8} {'max':>8}   failures")
    for number in map(int, options.targets.split(",")):
        asyncio.run(carried(number))
    for name, die in (("refused", refuse), ("silent", fall_silent)):
        seconds = sorted(asyncio.run(noticed(options.deaths, die)))
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        spread = f"p50 {cuts[49]:.2f} s, p90 {cuts[89]:.2f} s, p99 {cuts[98]:.2f} s, max {seconds[-1]:.2f} s"
        print(f"{name}: {len(seconds)} deaths, min {seconds[0]:.2f} s, {spread}")
    return 0


async def carried(number: int) -> None:
    """Print what one loop does with so many targets."""
    port, pid = listener()
    downs: list[CheckTarget] = []

    def changed(target: CheckTarget, health: Health) -> None:
        if health.state is not CheckState.UP:
            downs.append(target)

    monitor = Monitor(probe, changed, time.monotonic)
    try:
        monitor.want(frozenset(CheckTarget(f"127.1.{n >> 8}.{n & 255}", port) for n in range(number)))
        await asyncio.sleep(SETTLE_S)
        late, rates, stretches = [], [], []
        end_s = time.monotonic() + MEASURED_S
        while (began_s := time.monotonic()) < end_s:
            await asyncio.sleep(TICK_S)
            late.append((time.monotonic() - began_s - TICK_S) * 1000)
            rates.append(monitor.per_second)
            stretches.append(monitor.stretch)
        p50, p99 = (statistics.quantiles(late, n=100)[at] for at in (49, 98))
        print(
            f"{number:8} {statistics.mean(rates):9.0f} {statistics.mean(stretches):8.2f}"
            f" {p50:11.1f} ms {p99:5.1f} ms {max(late):5.1f} ms   {len(downs)}",
            flush=True,
        )
    finally:
        await monitor.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def listener() -> tuple[int, int]:
    """A process that accepts and closes; its port and its pid."""
    sock = socket.create_server(("0.0.0.0", 0), backlog=4096)
    pid = os.fork()
    if pid == 0:
        while True:
            sock.accept()[0].close()
    port: int = sock.getsockname()[1]
    sock.close()
    return port, pid


class Server:
    """Accepts and closes, on the loop, until it dies."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=1)
        self.sock.setblocking(False)
        self.target = CheckTarget("127.0.0.1", self.sock.getsockname()[1])
        self.fillers: list[socket.socket] = []
        asyncio.get_running_loop().add_reader(self.sock, self._accept)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            self.sock.accept()[0].close()

    def close(self) -> None:
        """Everything of it."""
        if self.sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.sock)
        for sock in (self.sock, *self.fillers):
            sock.close()


def refuse(server: Server) -> None:
    """The process died, its host lives."""
    server.close()


def fall_silent(server: Server) -> None:
    """The host died: nothing comes back. Four connections are more than a backlog of 1 holds."""
    asyncio.get_running_loop().remove_reader(server.sock)
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(server.sock.getsockname())
        server.fillers.append(filler)


async def noticed(deaths: int, die: Callable[[Server], None]) -> list[float]:
    """Seconds from death to DOWN, of so many servers that die at random moments."""
    down_s: dict[CheckTarget, float] = {}
    up: set[CheckTarget] = set()

    def changed(target: CheckTarget, health: Health) -> None:
        if health.state is CheckState.UP:
            up.add(target)
        elif target in died_s:
            down_s[target] = time.monotonic()

    async def die_some_time(server: Server) -> None:
        await asyncio.sleep(random.uniform(2.0, 7.0))
        died_s[server.target] = time.monotonic()
        die(server)

    died_s: dict[CheckTarget, float] = {}
    servers = [Server() for _ in range(deaths)]
    monitor = Monitor(probe, changed, time.monotonic)
    monitor.want(frozenset(server.target for server in servers))
    try:
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*map(die_some_time, servers))
            while len(down_s) < deaths:
                await asyncio.sleep(0.05)
    finally:
        await monitor.close()
        for server in servers:
            server.close()
    assert len(up) == deaths, "each was up before it died"
    return [down_s[target] - died_s[target] for target in died_s]


if __name__ == "__main__":
    sys.exit(main())
