"""The story of Fusis in about a minute, on real IPVS and real Serf: `make demo`.

A balancer starts, three servers join and get traffic, one dies without a word, requests go on, it comes back. Each step
is checked; the exit status is 0 only when all were seen to be true.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer, RealServer
from tests.lab.topology import VIP, Lab
from tests.lab.traffic import Traffic

REQUESTS = 300


class Story:
    """Prints what happens, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began_s:6.1f} s  {text}", flush=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        self.say(text)
        began_s = time.monotonic()
        yield
        self.say(f"   done in {time.monotonic() - began_s:.2f} s")


def main() -> int:
    story = Story()
    with tempfile.TemporaryDirectory(prefix="fusis-demo-") as home, Lab() as lab, contextlib.ExitStack() as stack:
        story.say("a network of namespaces: client, router, two balancers, three real servers; IPVS is the kernel's own")
        with story.step("fusisd --iface eth0 starts on lb1"):
            balancer = stack.enter_context(Balancer(lab.lb1, Path(home, "lb1")))
        servers = {host.name: RealServer(host, Path(home, host.name), balancer) for host in lab.servers}
        for server in servers.values():
            stack.callback(server.stop)
        tell(story, balancer, servers)
    story.say("all of it was seen to be true")
    return 0


def tell(story: Story, balancer: Balancer, servers: dict[str, RealServer]) -> None:
    names = set(servers)
    with story.step(f"POST /services: web on {VIP}:80; the VIP appears on lb1 and answers ARP"):
        balancer.add_service()
        assert f"{VIP}/32" in balancer.host.run("ip", "-brief", "address", "show", "dev", "eth0")
    with story.step("three fusis-agents start; Serf finds them, a check passes, they become destinations"):
        for server in servers.values():
            server.start()
        poll(lambda: balancer.weights("web") == dict.fromkeys(names, 1), 60, "three destinations of weight 1")
    with story.step(f"{REQUESTS} requests to {VIP}"):
        answers = [ask(VIP, 80, "client") for _ in range(REQUESTS)]
        shares = {name: answers.count(name) for name in sorted(names)}
        story.say(f"   answered by {shares}")
        assert all(share >= REQUESTS / len(names) * 0.8 for share in shares.values()), "they are spread evenly"
    with Traffic() as traffic:
        poll(lambda: traffic.total >= 50, what="the client's traffic")
        assert not traffic.lost, traffic.lost
        death(story, balancer, servers["rs2"], traffic)
        rebirth(story, balancer, servers["rs2"], traffic)
    agree(story, balancer, names)
    reactions = balancer.status()["reaction_ms"]
    story.say(f"fusisd's own share, value observed to kernel changed: {reactions} ms")
    assert reactions["count"] > 0 and reactions["p50"] < 10, "the daemon's own share stays under 10 ms"


def death(story: Story, balancer: Balancer, victim: RealServer, traffic: Traffic) -> None:
    name = victim.host.name
    with story.step(f"{name} dies: kill -9 of its backend, agent and Serf; its route goes"):
        died_s = time.monotonic()
        victim.kill()
        poll(lambda: not balancer.weights("web").get(name), 20, f"no weight for {name}")
        out_s = time.monotonic() - died_s
    late = [lost for at, lost in traffic.lost if at > died_s + out_s + 0.5]
    poll(lambda: _gone(balancer, victim), 60, f"{name} to be deleted")
    story.say(f"   no new connection after {out_s:.2f} s, deleted after {time.monotonic() - died_s:.2f} s")
    before = traffic.total
    lost_before = len(traffic.lost)
    poll(lambda: traffic.total >= before + 50, what="requests to go on")
    story.say(f"   requests go on: {lost_before} lost around the death, {len(traffic.lost) - lost_before} of the last 50")
    assert len(traffic.lost) == lost_before, traffic.lost
    assert not late, traffic.lost


def _gone(balancer: Balancer, victim: RealServer) -> bool:
    return f"{victim.host.address}:80" not in balancer.host.run("ipvsadm", "-Ln")


def rebirth(story: Story, balancer: Balancer, server: RealServer, traffic: Traffic) -> None:
    name = server.host.name
    with story.step(f"{name} comes back and gets traffic again"):
        began_s = time.monotonic()
        server.start()
        poll(lambda: traffic.last.get(name, 0.0) > began_s, 60, f"an answer from {name}")


def agree(story: Story, balancer: Balancer, names: set[str]) -> None:
    with story.step("ipvsadm -Ln --stats and the API agree"):
        poll(lambda: balancer.weights("web") == dict.fromkeys(names, 1), 20, "three destinations of weight 1")
        table = balancer.host.run("ipvsadm", "-Ln", "--stats")
        print("\n".join(f"          {line}" for line in table.splitlines()))
        shown = {line.split()[1] for line in table.splitlines() if line.strip().startswith("-> 10.")}
        listed = {f"{row['Host']}:{row['Port']}" for row in balancer.service("web")["Destinations"]}
        assert shown == listed, (shown, listed)


if __name__ == "__main__":
    sys.exit(main())
