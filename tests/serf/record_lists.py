"""Records what a balancer's agent lists while servers come, go and vanish: `python -m tests.serf.record_lists [NAME ...]`.

A record is the lists that fusisd.serf hands over, in order, with the seconds since the beginning, and between them the
events of the same agent, whose statuses may be old. Read by tests/fusisd/test_membership_recorded.py. Needs the Debian
package serf; profile local, on addresses of 127.0.0.0/8 that are written down as 10.0.0.N.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from fusisd.serf import Member, MemberEvent, SerfClient, SerfError
from tests.serf.agents import Agents, address

RECORDS = Path(__file__).parent / "lists"
LIMIT_S = 90.0
HELD_BACK_S = 4.0  # Serf holds events back for up to 3 s
SERVER = ("role=agent", "s:web=80/route")


class Recorder:
    """Follows agent n1."""

    def __init__(self, agents: Agents) -> None:
        self.agents, self.rows = agents, list[dict[str, Any]]()
        self._began_s = asyncio.get_running_loop().time()
        self._members: dict[str, Member] = {}
        self._jobs: list[asyncio.Task[None]] = []

    def follow(self) -> None:
        self._jobs = [asyncio.create_task(job) for job in (self._lists(), self._events())]

    async def unfollow(self) -> None:
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    async def until(self, **statuses: str) -> None:
        """Wait for a list that shows these nodes so ("" is not at all), and for the event of it, where there is one."""
        before = self._events_noted()
        await self._poll(lambda: self._statuses(statuses) == statuses)
        with contextlib.suppress(TimeoutError):  # a list that collapsed has none
            await self._poll(lambda: self._events_noted() > before, HELD_BACK_S)

    async def until_tag(self, name: str, text: str | None) -> None:
        """Wait for a list that shows this node's service so (None: not at all)."""
        await self._poll(lambda: name in self._members and self._members[name].tags.get("s:web") == text)

    def begin_here(self) -> None:
        """Keep the last list alone of what came until now: how a cluster forms, in one step or three, is another story."""
        self.rows[:] = [row for row in self.rows if "list" in row][-1:]

    def _statuses(self, names: Iterable[str]) -> dict[str, str]:
        return {name: getattr(self._members.get(name), "status", "") for name in names}

    def _events_noted(self) -> int:
        return sum("list" not in row for row in self.rows)

    async def _poll(self, seen: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        async with asyncio.timeout(limit_s):
            while not seen():
                await asyncio.sleep(0.02)

    async def _lists(self) -> None:
        def seen(value: Any) -> None:
            fresh = {member.name: member for member in value.members}
            if fresh != self._members:
                self._members = fresh
                self._note("list", value.members)

        await SerfClient(address(1), 7373).watch(seen, lambda lost: None)

    async def _events(self) -> None:
        while True:
            client = SerfClient(address(1), 7373)
            try:
                await client.connect()
                async for event in await client.stream():
                    if isinstance(event, MemberEvent):
                        self._note(event.kind, event.members)
            except SerfError:
                await asyncio.sleep(0.2)
            finally:
                await client.close()

    def _note(self, what: str, members: tuple[Member, ...]) -> None:
        plain = address(0)[:-1]
        rows = [[m.name, m.address.replace(plain, "10.0.0."), m.status, dict(m.tags)] for m in members]
        self.rows.append({"at_s": round(asyncio.get_running_loop().time() - self._began_s, 3), what: rows})


async def leaves_and_returns(record: Recorder) -> None:
    """A server says goodbye, is forced out of the list, and comes back."""
    two = await record.agents.client(2)
    await two.leave()
    await two.close()
    await record.until(n2="left")
    record.agents.kill(2)
    one = await record.agents.client(1)
    await one.force_leave("n2", prune=True)
    await record.until(n2="")
    record.agents.start(2, *SERVER, join=1)
    await record.until(n2="alive")
    await one.close()


async def dies_and_returns_elsewhere(record: Recorder) -> None:
    """A server loses its power, and its name comes back at another address."""
    record.agents.kill(2)
    await record.until(n2="failed")
    record.agents.start(9, *SERVER, join=1, name="n2")
    await record.until(n2="alive")


async def dies_and_is_reaped(record: Recorder) -> None:
    """A server loses its power for ever; an operator (a day later: Serf itself) takes it out of the list."""
    record.agents.kill(2)
    await record.until(n2="failed")
    one = await record.agents.client(1)
    await one.force_leave("n2", prune=True)
    await record.until(n2="")
    await one.close()


async def balancer_s_agent_restarts(record: Recorder) -> None:
    """The balancer's own agent dies and starts anew without a memory: its list collapses."""
    record.agents.kill(1)
    record.agents.start(1, "role=balancer")
    await record.until(n1="alive", n2="", n3="")
    one = await record.agents.client(1)
    await one.join([address(3)])
    await one.close()
    await record.until(n2="alive", n3="alive")


async def balancer_is_cut_off(record: Recorder) -> None:
    """Nobody answers the balancer's agent for a while: all are called failed, and come back."""
    record.agents.stop(2, 3)
    await record.until(n2="failed", n3="failed")
    record.agents.go_on(2, 3)
    await record.until(n2="alive", n3="alive")


async def tags_change(record: Recorder) -> None:
    """A server drains by its tags, drops the service, and offers it again, while another only joins late."""
    two = await record.agents.client(2)
    await two.set_tags({"s:web": "80/route//drain"})
    await record.until_tag("n2", "80/route//drain")
    await two.set_tags({}, ["s:web"])
    await record.until_tag("n2", None)
    record.agents.start(4, *SERVER, join=1)
    await two.set_tags({"s:web": "80/route"})
    await record.until(n4="alive")
    await two.close()


SCRIPTS: dict[str, Callable[[Recorder], Awaitable[None]]] = {
    script.__name__: script
    for script in (
        leaves_and_returns,
        dies_and_returns_elsewhere,
        dies_and_is_reaped,
        balancer_s_agent_restarts,
        balancer_is_cut_off,
        tags_change,
    )
}


async def recorded(name: str, agents: Agents) -> list[dict[str, Any]]:
    """The rows of one script, on agents n1 (the balancer's), n2 and n3."""
    agents.start(1, "role=balancer")
    for number in (2, 3):
        agents.start(number, *SERVER, join=1)
    record = Recorder(agents)
    record.follow()
    await record.until(n1="alive", n2="alive", n3="alive")
    record.begin_here()
    await SCRIPTS[name](record)
    await record.unfollow()
    return record.rows


def statuses(rows: list[dict[str, Any]], name: str) -> list[str]:
    """A node's status in the lists from the first that shows it on, "" where it is not; what repeats is said once."""
    said: list[str] = []
    for row in rows:
        if "list" in row:
            status = next((status for other, _, status, _ in row["list"] if other == name), "")
            said += [status] if said[-1:] != [status] and (said or status) else []
    return said


async def main(names: list[str]) -> None:
    RECORDS.mkdir(exist_ok=True)
    for name in names or list(SCRIPTS):
        with tempfile.TemporaryDirectory() as home, Agents(Path(home)) as agents:
            rows = await recorded(name, agents)
        lines = ",\n".join(f" {json.dumps(row)}" for row in rows)
        (RECORDS / f"{name}.json").write_text(f"[\n{lines}\n]\n")
        print(f"{name}: {sum('list' in row for row in rows)} lists of {len(rows)} rows")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
