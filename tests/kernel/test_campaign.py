"""fusisd is killed at random moments, LIVES times (8 in `make test`, 200 in `make soak`), while operators change services
and a client sends requests: no acknowledged change is lost, no foreign entry changes, and not one request is lost.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

from tests.lab.backends import backends
from tests.lab.campaign import Operators, lines, seen
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer
from tests.lab.topology import VIP, Lab
from tests.lab.traffic import Traffic

LIVES = int(os.environ.get("LIVES", "8"))
SEED = int(os.environ.get("SEED", str(random.randrange(1 << 30))))
# Masqueraded connections stay in conntrack for two minutes; a small machine's table (the guest's has 4096 places) is full
# when a client makes 40 a second, and then drops what comes, whoever keeps the balancer.
PAUSE_S = 0.05
FOREIGN = {"-A -t 10.0.0.9:80 -s lc", "-a -t 10.0.0.9:80 -r 10.0.0.10:80 -g -w 3"}


def test_kills_at_random_moments_lose_nothing(lab: Lab, tmp_path: Path) -> None:
    print(f"SEED={SEED} LIVES={LIVES}")
    dice = random.Random(SEED)
    lab.lb1.run("ipvsadm", "-A", "-t", "10.0.0.9:80", "-s", "lc")
    lab.lb1.run("ipvsadm", "-a", "-t", "10.0.0.9:80", "-r", "10.0.0.10:80", "-g", "-w", "3")
    with Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off") as balancer, backends(lab.servers):
        balancer.add_service()
        for host in lab.servers:
            row = {"Name": host.name, "Host": host.address, "Port": 80, "Mode": "nat"}
            balancer.post("/services/web/destinations", row)
        ask(VIP, 80, "client")
        web = {line for line in table(lab) if f"{VIP}:80 " in line}
        operators = Operators(balancer.socket, SEED)
        with Traffic(pause_s=PAUSE_S) as traffic:
            for life in range(LIVES):
                live(balancer, operators, dice)
                balancer.start()
                operators.settle(seen(balancer.client().get("/services")))
                wanted = lines(operators.model) | web | FOREIGN
                poll(lambda wanted=wanted: table(lab) == wanted, 60, f"the kernel to be as wanted in life {life}")
        assert traffic.lost == []
        assert traffic.total > 0
        assert operators.acknowledged > 0
        print(f"{operators.acknowledged} changes acknowledged, {traffic.total} requests, none lost, in {LIVES} lives")


def live(balancer: Balancer, operators: Operators, dice: random.Random) -> None:
    """Changes until the kill; one life in four ends while fusisd starts."""
    if dice.random() < 0.25:
        balancer.kill()
        balancer.spawn()
        threading.Event().wait(dice.uniform(0.05, 1.5))
        balancer.kill()
        return
    operators.start()
    enough = operators.acknowledged + dice.randrange(6)
    poll(lambda: operators.acknowledged >= enough, 60, "changes")
    threading.Event().wait(dice.uniform(0.0, 0.3))
    balancer.kill()
    operators.stop()


def table(lab: Lab) -> set[str]:
    return set(lab.lb1.run("ipvsadm", "-Sn").splitlines())
