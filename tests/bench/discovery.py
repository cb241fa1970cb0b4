"""How soon clients see that a server came or went: `make bench-discovery`, in the lab's guest, ten minutes.

All of it is real: IPVS, fusisd with its Serf agent, and on each of three servers a service, a fusis-agent and its Serf
agent (profile lan, as both start it). Four clients ask the VIP while the third server comes and goes: 30 requests a second
in all, a new connection for each, given up after a second. Times are from just before the deed. Out: the kernel's table has
no weight for the server (looked at every 10 ms). Last lost: when the last request was begun that got no answer.
Before each death the service is made anew, for the flap damping of checks would soon hold up the server's return.
Does not: judge, or assert a time.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType

from pyipvs import IPVS
from tests.lab.expect import ask
from tests.lab.fusis import Balancer, RealServer
from tests.lab.topology import VIP, Host, Lab
from tests.lab.traffic import Traffic

CLIENTS, PAUSE_S, PATIENCE_S = 4, 0.13, 1.0
LOOK_S = 0.01
LIMIT_S = 120.0
METHODS = "nat,route,gue"
CHECKED: dict[str, object] = {"kind": "tcp", "interval_s": 1}
UNCHECKED: dict[str, object] = {"kind": "none"}


class Experiment:
    """What was measured of one deed, round for round."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds: dict[str, list[float]] = {}
        self.lost: list[int] = []
        self.why: Counter[str] = Counter()
        self.asked = 0

    def took(self, what: str, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)

    @contextlib.contextmanager
    def clients(self) -> Iterator[Clients]:
        """Clients that ask meanwhile; what they lost counts."""
        with Clients() as clients:
            clients.go_on()
            yield clients
            clients.go_on()
        self.lost.append(len(clients.lost))
        self.why.update(why for _, why in clients.lost)
        self.asked += clients.total

    def report(self) -> None:
        print(self.name)
        for what, seconds in self.seconds.items():
            p90 = statistics.quantiles(seconds, n=10, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
            cells = (min(seconds), statistics.median(seconds), p90, max(seconds))
            print(f"  {what:24} {len(seconds):4}", *(f"{cell:8.2f}" for cell in cells))
        lost = f"{sum(self.lost)} of {self.asked}, {max(self.lost)} at most in a round"
        print(f"  {'requests lost':24} {lost}", *(f"({count} {why})" for why, count in self.why.items()), flush=True)


class Clients:
    """Several clients at once, for one that waits in vain asks nobody else; a context manager."""

    def __init__(self) -> None:
        self._all = [Traffic(pause_s=PAUSE_S, timeout_s=PATIENCE_S) for _ in range(CLIENTS)]
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Clients:
        for traffic in self._all:
            self._running.enter_context(traffic)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def go_on(self) -> None:
        """A second or two more: deeds come at any moment of a check's interval."""
        time.sleep(random.uniform(1.0, 2.0))

    @property
    def total(self) -> int:
        return sum(traffic.total for traffic in self._all)

    @property
    def lost(self) -> list[tuple[float, str]]:
        """When each request that got no answer was begun, and why it got none."""
        return [lost for traffic in self._all for lost in traffic.lost]

    def last_s(self, name: str) -> float:
        """When this server answered last."""
        return max(traffic.last.get(name, 0.0) for traffic in self._all)


class Site:
    """Three servers behind a balancer; the third is the one that comes and goes."""

    def __init__(self, lab: Lab, home: Path, stack: contextlib.ExitStack, methods: list[str]) -> None:
        """`methods`: those by which the third server is to come and leave."""
        self.lab, self._home, self._stack, self.methods = lab, home, stack, methods
        self.balancer = stack.enter_context(Balancer(lab.lb1, home / "lb1"))
        self._ipvs = stack.enter_context(IPVS(netns=lab.lb1.name))
        self.host: Host = lab.servers[2]
        self.steady = [self._server(host, "nat") for host in lab.servers[:2]]
        self._make(CHECKED)
        for server in self.steady:
            server.start()
        until(lambda: self._weights() == [1, 1], "two servers")
        # The guest's table of masqueraded connections has 4096 places, and each is held for two minutes.
        lab.lb1.run("modprobe", "nf_conntrack")
        lab.lb1.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=10")

    def server(self, method: str) -> RealServer:
        """The third server, offering by this method."""
        return self._server(self.host, method)

    def _server(self, host: Host, method: str) -> RealServer:
        server = RealServer(host, self._home / f"{host.name}-{method}", self.balancer, "web", "--mode", method)
        self._stack.callback(server.stop)
        return server

    def fresh(self, check: dict[str, object]) -> None:
        """The service made anew, and everybody in it."""
        self.balancer.client().send("DELETE", "/v1/services/web?now=1")
        self._make(check)
        until(lambda: self._weights() == [1, 1, 1], "three servers")
        until(lambda: ask(VIP, 80, "client") == self.host.name, "an answer by the third")

    def _make(self, check: dict[str, object]) -> None:
        body = {"name": "web", "protocol": "tcp", "address": VIP, "port": 80, "check": check}
        self.balancer.client().send("POST", "/v1/services", body)

    def _rows(self) -> dict[str, int]:
        rows = (row.destination for row in self._ipvs.destinations(f"tcp/{VIP}:80"))
        return {str(row.address): row.weight for row in rows}

    def _weights(self) -> list[int]:
        return list(self._rows().values())

    def out(self) -> bool:
        """Whether the kernel gives the third server no new connection."""
        return not self._rows().get(self.host.address)

    def gone(self) -> bool:
        """Whether it is not in the kernel's table."""
        return self.host.address not in self._rows()

    def serf_pid(self) -> int:
        """The balancer's own Serf agent."""
        return int((self.balancer.state_dir / "serf" / "agent.pid").read_text())

    def another_serf(self, old: int) -> bool:
        """Whether it was started again."""
        return self.serf_pid() != old

    def all_alive(self) -> bool:
        """Whether fusisd follows its Serf agent, and that lists everybody as alive."""
        status = self.balancer.status()
        alive = [node for node in status["nodes"] if node["status"] == "alive" and not node["missing"]]
        return status["serf_connected"] and len(alive) == len(self.lab.servers)


def until(condition: Callable[[], object], what: str) -> float:
    """When it became true, looking every LOOK_S. AssertionError after LIMIT_S."""
    limit_s = time.monotonic() + LIMIT_S
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return time.monotonic()
        assert time.monotonic() < limit_s, f"not within {LIMIT_S:.0f} s: {what}"
        time.sleep(LOOK_S)


def coming_and_leaving(site: Site, times: int) -> Iterator[Experiment]:
    """The agent is started, and later told to leave; the service runs all the time."""
    for method in site.methods:
        starts, leaves = Experiment(f"agent started, {method}"), Experiment(f"agent told to leave (SIGTERM), {method}")
        server = site.server(method)
        server.backend.start()
        for _ in range(times):
            came(server, starts)
            left(site, server, leaves)
        server.backend.kill()
        yield from (starts, leaves)


def came(server: RealServer, experiment: Experiment) -> None:
    """Start the agent, and see the first answer."""
    with experiment.clients() as clients:
        began_s = time.monotonic()
        server.resume()
        until(lambda: clients.last_s(server.host.name) > began_s, "its first answer")
        experiment.took("first answer", clients.last_s(server.host.name) - began_s)


def left(site: Site, server: RealServer, experiment: Experiment) -> None:
    """Tell the agent to leave, and see the server out, the agent ended, and the last answer."""
    with experiment.clients() as clients:
        began_s = time.monotonic()
        server.begin_to_leave()
        experiment.took("out", until(site.out, "it to be out") - began_s)
        server.left()
        experiment.took("agent ended", time.monotonic() - began_s)
        until(site.gone, "its end in the kernel's table")
    experiment.took("last answer", max(0.0, clients.last_s(server.host.name) - began_s))


def service_killed(site: Site, times: int) -> Iterator[Experiment]:
    """kill -9 of the service; its agent lives and says so."""
    server = site.server("nat")
    server.start()
    for name, check in (("no checks", UNCHECKED), ("check every 1 s", CHECKED)):
        experiment = Experiment(f"service killed, {name}")
        for _ in range(times):
            site.fresh(check)
            went_out(site, experiment, server.backend.kill)
            server.backend.start()
        yield experiment
    server.leave()
    server.backend.kill()


def power_off(site: Site, times: int) -> Iterator[Experiment]:
    """The cable first, so that nobody hears of what ends: the service, the agent and its Serf agent."""
    server = site.server("nat")

    def off() -> None:
        site.lab.cable(site.host, "down")
        server.kill()

    for name, check in (("check every 1 s", CHECKED), ("no checks", UNCHECKED)):
        experiment = Experiment(f"power off, {name}")
        for _ in range(times):
            server.start()
            site.fresh(check)
            went_out(site, experiment, off)
            site.lab.cable(site.host, "up")
        yield experiment


def went_out(site: Site, experiment: Experiment, deed: Callable[[], None]) -> None:
    """Do it, and see the server go."""
    with experiment.clients() as clients:
        began_s = time.monotonic()
        deed()
        experiment.took("out", until(site.out, "it to be out") - began_s)
    if clients.lost:
        experiment.took("last lost", max(begun_s for begun_s, _ in clients.lost) - began_s)


def serf_killed(site: Site, times: int) -> Iterator[Experiment]:
    """kill -9 of the balancer's own Serf agent. (fusisd is restarted in between: it waits longer before each new start.)"""
    experiment = Experiment("balancer's Serf agent killed")
    server = site.server("nat")
    server.start()
    site.fresh(CHECKED)
    for _ in range(times):
        site.balancer.kill()
        site.balancer.start()
        until(site.all_alive, "everybody to be alive")
        with experiment.clients():
            began_s, old = time.monotonic(), site.serf_pid()
            os.kill(old, signal.SIGKILL)
            until(partial(site.another_serf, old), "another to be started")
            experiment.took("everybody alive again", until(site.all_alive, "everybody to be alive") - began_s)
    server.leave()
    server.backend.kill()
    yield experiment


EXPERIMENTS = {
    "leave": (coming_and_leaving, 5, "rounds of start and leave for each method"),
    "kill": (service_killed, 15, "kills of the service, without checks and with"),
    "off": (power_off, 6, "power-offs, with checks and without"),
    "serf": (serf_killed, 6, "kills of the balancer's Serf agent"),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, (_, times, what) in EXPERIMENTS.items():
        parser.add_argument(f"--{name}", type=int, default=times, metavar="N", help=f"{what} (default {times})")
    parser.add_argument("--methods", default=METHODS, help="of the starts and leaves (default %(default)s)")
    options = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, kernel {platform.release()}; seconds")
    print(f"{'':26} {'n':>4}", *(f"{head:>8}" for head in ("min", "median", "p90", "max")))
    compileall.compile_dir("fusisd", quiet=1)  # as an installed package is: else each agent's start would compile it
    with tempfile.TemporaryDirectory(prefix="fusis-bench-") as home, Lab() as lab, contextlib.ExitStack() as stack:
        site = Site(lab, Path(home), stack, options.methods.split(","))
        for name, (run, _, _) in EXPERIMENTS.items():
            if times := getattr(options, name):
                for experiment in run(site, times):
                    experiment.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
