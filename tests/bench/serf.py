"""What a large Serf cluster costs the balancer: `python -m tests.bench.serf [--members 5000] [--events 30000]`.

Needs neither Serf nor root: a scripted agent in another process on this host's loopback. Decoded: msgpack and values of the
list that a member answer holds, from bytes in memory. List to list: what comes after that for each list, which is sorting,
comparing with the last, and turning it into nodes (membership.update). Storm: events as fast as they are taken, most of
them member-update of one node and every hundredth with a hundred nodes, while `watch` follows; how late the loop was (a
timer every 5 ms), lists made, resident memory before and after, and when the change made at its end was seen.
Does not: judge.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import operator
import os
import platform
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from fusisd import membership
from fusisd.serf import Connection, MembersSeen, SerfClient, values
from tests.serf.scripted import Peer, Row, ScriptedAgent, packed

RUNS = 30
TICK_S = 0.005
LIMIT_S = 120.0


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=5000)
    parser.add_argument("--events", type=int, default=30_000)
    options = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, kernel {platform.release()}")
    lists(options.members)
    asyncio.run(storm(options.members, options.events))
    return 0


def lists(number: int) -> None:
    """Print what one list costs."""
    agent = ScriptedAgent()
    agent.populate(number)
    rows = list(agent.members.values())
    taken: dict[str, list[float]] = {}
    known = ordered(values.members({"Members": rows}))
    nodes = membership.update({}, known, 0.0)
    for _ in range(RUNS):
        random.shuffle(rows)  # Go walks a map in another order each time
        one = random.choice(rows[1:])
        one["Tags"] = {**one["Tags"], "s:web": f"80/nat/{random.randrange(1000)}"}
        data = packed({"Error": "", "Seq": 2}, {"Members": rows})
        body = clocked(taken, "decoded: msgpack", received, data)
        members = clocked(taken, "decoded: values", values.members, body)
        after = clocked(taken, "list to list: sorted", ordered, members)
        clocked(taken, "list to list: compared, one differs", operator.ne, after, known)
        clocked(taken, "list to list: compared, the same", operator.ne, after, ordered(values.members(body)))
        clocked(taken, "list to list: nodes, the same", membership.update, nodes, known, 1.0)
        nodes = clocked(taken, "list to list: nodes, one differs", membership.update, nodes, after, 1.0)
        known = after
    print(f"{number} members, {len(data) / 1e3:.0f} kB, medians of {RUNS} (longest):")
    for name, seconds in taken.items():
        print(f"  {name:36} {statistics.median(seconds) * 1e3:6.1f} ms ({max(seconds) * 1e3:.1f} ms)")


def clocked(taken: dict[str, list[float]], name: str, work: Callable[..., Any], *arguments: object) -> Any:
    """Its result; the seconds go to `taken`."""
    began_s = time.perf_counter()
    result = work(*arguments)
    taken.setdefault(name, []).append(time.perf_counter() - began_s)
    return result


def received(data: bytes) -> object:
    """As the session does it, in pieces."""
    connection = Connection()
    connection.request("handshake", {"Version": 1})
    connection.request("members")
    for at in range(0, len(data), 65536):
        found = connection.receive(data[at : at + 65536])
    return found[0].body


def ordered(members: tuple[values.Member, ...]) -> tuple[values.Member, ...]:
    """As `watch` does it."""
    return tuple(sorted(members, key=lambda member: member.name))


async def storm(members: int, events: int) -> None:
    """Print what a storm does to a loop that watches."""
    port, pid = agent_process(members, events)
    seen: list[MembersSeen] = []
    count = 0

    def note(one: MembersSeen) -> None:
        nonlocal count
        count += 1
        seen[:] = [one]

    watching = asyncio.create_task(SerfClient("127.0.0.1", port).watch(note, lambda lost: sys.exit(lost.reason)))
    control = SerfClient("127.0.0.1", port)
    try:
        await control.connect()
        async with asyncio.timeout(LIMIT_S):
            while not seen:
                await asyncio.sleep(0.01)
            await asyncio.sleep(2.0)  # the first series is over
            gc.collect()
            gc.freeze()  # as the daemon does once it has started
            lists_before = int((await control.stats())["bench"]["members"])
            before_mb, late, began_s = resident_mb(), [], time.monotonic()
            await control.event("storm")  # the agent process begins at this
            while "storm" not in {tag for member in seen[0].members for tag in member.tags}:
                at_s = time.monotonic()
                await asyncio.sleep(TICK_S)
                late.append((time.monotonic() - at_s - TICK_S) * 1e3)
        took_s = time.monotonic() - began_s
        listed = int((await control.stats())["bench"]["members"]) - lists_before
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await control.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    p50, p99 = (statistics.quantiles(late, n=100, method="inclusive")[at] for at in (49, 98))
    print(f"a storm of {events} events beside {members} members: over and its last change seen after {took_s:.1f} s")
    print(f"  loop late: median {p50:.1f} ms, p99 {p99:.1f} ms, max {max(late):.1f} ms; {listed} lists meanwhile")
    print(f"  resident memory: {before_mb:.1f} MB before, {resident_mb():.1f} MB after")


class StormyAgent(ScriptedAgent):
    """Begins its storm when it is sent the event "storm", and then changes a tag."""

    events = 0

    def _event(self, peer: Peer, seq: int, body: Row) -> None:
        super()._event(peer, seq, body)
        self.storming = asyncio.ensure_future(self._storm())

    def _stats(self, peer: Peer, seq: int, body: Row) -> None:
        peer.send(seq, body={"bench": {"members": str(self.asked.count("members"))}})

    async def _storm(self) -> None:
        rows = list(self.members.values())
        small = {"Event": "member-update", "Members": rows[1:2]}
        large = {"Event": "member-update", "Members": rows[1:101]}
        await self.storm(small if n % 100 else large for n in range(self.events - 1))
        rows[-1]["Tags"]["storm"] = "over"
        self.ring(small)


def agent_process(members: int, events: int) -> tuple[int, int]:
    """Its port and its pid."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        asyncio.run(serve(members, events, writing))
    os.close(writing)
    port = int(os.read(reading, 16))
    os.close(reading)
    return port, pid


async def serve(members: int, events: int, tell: int) -> None:
    """For ever; says its port."""
    agent = StormyAgent()
    agent.populate(members)
    agent.events = events
    await agent.start()
    os.write(tell, str(agent.where[1]).encode())
    await asyncio.Event().wait()


def resident_mb() -> float:
    """This process's memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
