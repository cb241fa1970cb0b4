"""fusisd is killed at random moments, LIVES times (8 in `make test`, 200 in `make soak`), while operators change services,
servers join, leave, fail and change their weight by real Serf, backends of checked destinations stop and start, and a client
sends requests: no acknowledged change is lost, no foreign entry changes, the kernel becomes as it is wanted after every
start, and not one request is lost. (The client's service has servers of its own, which nobody stops: what a request to a
dead server meets is no loss to a restart, and is measured in `tests/bench/checks.py`.)
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.backends import backends
from tests.lab.campaign import Operators, lines, seen
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer
from tests.lab.members import Members
from tests.lab.topology import VIP, Lab
from tests.lab.traffic import Traffic

LIVES = int(os.environ.get("LIVES", "8"))
SEED = int(os.environ.get("SEED", str(random.randrange(1 << 30))))
# Masqueraded connections stay in conntrack for two minutes; a small machine's table (the guest's has 4096 places) is full
# when a client makes 40 a second, and then drops what comes, whoever keeps the balancer.
PAUSE_S = 0.05
FOREIGN = {"-A -t 10.0.0.9:80 -s lc", "-a -t 10.0.0.9:80 -r 10.0.0.10:80 -g -w 3"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network: three servers for the client, three that come and go."""
    with Lab(servers=6) as built:
        yield built


def test_kills_at_random_moments_lose_nothing(lab: Lab, tmp_path: Path) -> None:
    print(f"SEED={SEED} LIVES={LIVES}")
    dice = random.Random(SEED)
    lab.lb1.run("ipvsadm", "-A", "-t", "10.0.0.9:80", "-s", "lc")
    lab.lb1.run("ipvsadm", "-a", "-t", "10.0.0.9:80", "-r", "10.0.0.10:80", "-g", "-w", "3")
    steady, others = lab.servers[:3], lab.servers[3:]
    with Balancer(lab.lb1, tmp_path / "lb1") as balancer, backends(steady):
        balancer.add_service()
        for host in steady:
            row = {"Name": host.name, "Host": host.address, "Port": 80, "Mode": "nat"}
            balancer.post("/services/web/destinations", row)
        ask(VIP, 80, "client")
        always = FOREIGN | {line for line in table(lab) if f"{VIP}:80 " in line}
        operators = Operators(balancer.socket, SEED)
        with Members(others, tmp_path, balancer, dice) as members, Traffic(pause_s=PAUSE_S) as traffic:
            poll(lambda: as_wanted(lab, always, members), 60, "everybody to have joined")
            for life in range(LIVES):
                live(balancer, operators, members, dice)
                balancer.start()
                operators.settle(seen(balancer.client().get("/services")))
                wanted = always | lines(operators.model)
                poll(lambda wanted=wanted: as_wanted(lab, wanted, members), 90, f"the wanted table in life {life}")
            members.come_back()
            poll(lambda: as_wanted(lab, wanted, members), 90, "everybody to be back")
        assert traffic.lost == []
        assert traffic.total > 0
        assert operators.acknowledged > 0
        print(f"{operators.acknowledged} changes acknowledged, {traffic.total} requests, none lost, in {LIVES} lives")
        print(f"slowest answer {traffic.slowest_s:.2f} s")
        print("servers and backends:", ", ".join(f"{name} {count}" for name, count in sorted(members.done.items())))


def live(balancer: Balancer, operators: Operators, members: Members, dice: random.Random) -> None:
    """Changes until the kill, something of servers or backends before or after it; one life in four ends at its start."""
    before = dice.random() < 0.5
    if before:
        members.act()
    if dice.random() < 0.25:
        balancer.kill()
        balancer.spawn()
        threading.Event().wait(dice.uniform(0.05, 1.5))
        balancer.kill()
    else:
        operators.start()
        enough = operators.acknowledged + dice.randrange(6)
        poll(lambda: operators.acknowledged >= enough or operators.unanswered, 60, "changes")
        threading.Event().wait(dice.uniform(0.0, 0.3))
        balancer.kill()
        operators.stop()
    if not before:
        members.act()


def as_wanted(lab: Lab, wanted: set[str], members: Members) -> bool:
    """Whether the kernel has all that it must have, and nothing that it may not. AssertionError says what differs."""
    must, may = members.lines()
    found, must = table(lab), must | wanted
    assert must <= found <= must | may, f"missing: {must - found}, too much: {found - must - may}"
    return True


def table(lab: Lab) -> set[str]:
    return set(lab.lb1.run("ipvsadm", "-Sn").splitlines())
