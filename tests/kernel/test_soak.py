"""Several processes change one table at random, for SOAK_S seconds (30 in `make test`, 600 in `make soak`).

Each owns services of its own and keeps a model of them; at the end the kernel's table is what the models say, and no
process has grown.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import time
from dataclasses import replace

from pyipvs import IPVS, Destination, Ruleset, Service, ServiceKey, diff
from tests.lab.topology import Host

SOAK_S = float(os.environ.get("SOAK_S", "30"))
PROCESSES, SERVICES, HOSTS = 3, 4, 12
MOST_GROWTH_KIB = 8192
LEAST_TURNS = 1000

Model = dict[ServiceKey, tuple[Service, dict[tuple[str, int], Destination]]]


class Player:
    """One process' part."""

    def __init__(self, ipvs: IPVS, number: int) -> None:
        self.ipvs, self.random = ipvs, random.Random(number)
        self.keys = [ServiceKey.parse(f"tcp/10.{number}.0.{index}:80") for index in range(1, SERVICES + 1)]
        self.model: Model = {}

    def turn(self) -> None:
        """One change, one by one or several in a batch."""
        key = self.random.choice(self.keys)
        if key not in self.model:
            service = Service(key, self.random.choice(["rr", "wrr", "wlc"]), persistence_s=self.random.choice([0, 60]))
            self.ipvs.add_service(service)
            self.model[key] = (service, {})
        elif self.random.random() < 0.02:
            self.ipvs.delete_service(key)
            del self.model[key]
        elif self.random.random() < 0.1:
            self.reconcile(key)
        else:
            self.destination(key, self.model[key][1])

    def destination(self, key: ServiceKey, known: dict[tuple[str, int], Destination]) -> None:
        """Add, change or delete one."""
        wanted = self.any_destination()
        if wanted.key not in known:
            self.ipvs.add_destination(key, wanted)
        elif self.random.random() < 0.3:
            self.ipvs.delete_destination(key, wanted)
            del known[wanted.key]
            return
        else:
            self.ipvs.update_destination(key, wanted)
        known[wanted.key] = wanted

    def reconcile(self, key: ServiceKey) -> None:
        """Bring one service to a random state by the difference."""
        service, known = self.model[key]
        service = replace(service, scheduler=self.random.choice(["rr", "wlc"]))
        wanted = {one.key: one for one in (self.any_destination() for _ in range(self.random.randrange(HOSTS)))}
        now = Ruleset([(self.model[key][0], known.values())])
        self.ipvs.apply(diff(now, Ruleset([(service, wanted.values())])))
        self.model[key] = (service, wanted)

    def any_destination(self) -> Destination:
        return Destination(f"10.99.0.{self.random.randint(1, HOSTS)}", 80, self.random.randrange(100))


def play(netns: str, number: int, ends: multiprocessing.connection.Connection) -> None:
    with IPVS(netns=netns) as ipvs:
        player = Player(ipvs, number)
        until_s, turns, before = time.monotonic() + SOAK_S, 0, (0, 0)
        while time.monotonic() < until_s or turns < LEAST_TURNS:  # a slow machine takes longer, and passes
            player.turn()
            turns += 1
            if turns == LEAST_TURNS // 2:
                before = usage()
        ends.send((turns, before, usage(), player.model))


def usage() -> tuple[int, int]:
    """Peak memory in KiB, and how many files are open."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(os.listdir("/proc/self/fd"))


def test_many_at_once_leave_the_table_that_they_say(ipvs: IPVS, netns: Host) -> None:
    ours, theirs = zip(*(multiprocessing.Pipe(duplex=False) for _ in range(PROCESSES)), strict=True)
    context = multiprocessing.get_context("fork")
    players = [context.Process(target=play, args=(netns.name, index + 1, end)) for index, end in enumerate(theirs)]
    for player in players:
        player.start()
    wanted: Model = {}
    for end in ours:
        assert end.poll(SOAK_S + 120), "a process ended without a word"
        turns, before, after, model = end.recv()
        wanted |= model
        assert turns >= LEAST_TURNS
        assert after[1] == before[1], "files were left open"
        assert after[0] - before[0] < MOST_GROWTH_KIB, f"memory grew over {turns} turns"
    for player in players:
        player.join(60)
    table = Ruleset((service, known.values()) for service, known in wanted.values())
    assert ipvs.snapshot() == table
    assert diff(ipvs.snapshot(statistics=False), table) == []
