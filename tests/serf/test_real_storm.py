"""A storm made by real agents (tests/serf/test_storm.py has the larger one, of a scripted agent): fusisd follows n1, whose
RPC and n2's are given user events as fast as they take them, while n3 changes its tags as fast as Serf lets it. What n3 said
last is what counts in the end, fusisd answers meanwhile, and is no larger afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path

from fusisd.model import Offer
from fusisd.serf.client import DOORBELL, SerfClient
from fusisd.tags import encode_all
from tests.fusisd.dry import Dry
from tests.lab.expect import poll
from tests.serf.agents import Agents, address
from tests.serf.test_crowd import in_kernel, status

STORM_S, AT_ONCE = 3.0, 16
GROWTH_MB = 5.0  # 1.4 it was (2026-11), and 10 when every event was kept


def tags(weight: int) -> dict[str, str]:
    """A server that the balancer does not check: Serf's word decides alone."""
    return {"role": "agent", **encode_all([Offer("web", 8080, weight=weight, checked=False)])}


def memory_mb(pid: int) -> float:
    """The process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def latest_s(dry: Dry) -> str:
    """The bucket of /metrics that holds the loop's longest delay (of four in a second), since the start."""
    text = dry.ask("GET", "/metrics")[1].decode()
    rows = re.findall(r'^fusis_loop_lag_seconds_bucket\{le="(.*)"\} (.*)$', text, re.MULTILINE)
    return next(str(limit_s) for limit_s, count in rows if count == rows[-1][1])


async def storm(agents: Agents, dry: Dry) -> tuple[int, int, int]:
    """How many events were sent, how often fusisd answered meanwhile, and the last weight that n3 said."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + STORM_S
    clients = [await agents.client(number) for number in (1, 2, 3)]
    sent = answered = weight = 0

    async def ring(client: SerfClient) -> None:
        nonlocal sent
        while loop.time() < end_s:
            await client.event(DOORBELL, b"x" * 100)
            sent += 1

    async def change() -> None:
        nonlocal weight
        for weight in itertools.count(2):
            await clients[2].set_tags(tags(weight))
            if loop.time() >= end_s:
                return

    async def ask() -> None:
        nonlocal answered
        while loop.time() < end_s:
            assert (await asyncio.to_thread(status, dry))["serf_connected"]
            answered += 1

    await asyncio.gather(change(), ask(), *(ring(client) for client in clients[:2] for _ in range(AT_ONCE)))
    for client in clients:
        await client.close()
    return sent, answered, weight


def test_a_storm_by_real_agents_loses_no_state_and_leaves_nothing_behind(agents: Agents, dry: Dry) -> None:
    agents.start(1, "role=balancer")
    for number in (2, 3):
        agents.start(number, *(f"{tag}={text}" for tag, text in tags(1).items()), join=1)
    dry.start(dry.command("--serf", f"{address(1)}:7373", "--serf-allow", "127.0.0.0/8"))
    service = {"Name": "web", "Host": "10.0.0.1", "Port": 80, "Protocol": "tcp", "Scheduler": "rr"}
    assert dry.ask("POST", "/services", service)[0] == 200
    poll(lambda: in_kernel(dry) == {"n2": 1, "n3": 1}, 60, "both servers")
    before_mb = memory_mb(dry.pid)
    sent, answered, weight = asyncio.run(asyncio.wait_for(storm(agents, dry), 60))
    poll(lambda: in_kernel(dry) == {"n2": 1, "n3": weight}, 60, f"weight {weight}, which n3 said last")
    grown_mb = memory_mb(dry.pid) - before_mb
    print(f"\n{sent} events, {weight - 1} changes of tags, {answered} answers; {before_mb:.1f} MB and {grown_mb:+.1f} MB;"
          f" loop late by {latest_s(dry)} s at most")  # fmt: skip
    assert answered > 0
    assert grown_mb < GROWTH_MB
    log = dry.log.read_text()
    assert "ERROR" not in log
    assert log.count("text=connected") == 1, "it followed n1 all the time"
