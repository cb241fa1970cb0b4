"""Being in the balancers' cluster: joins while no balancer is in Serf's list alive, and says which are.

Serf goes on trying by itself too (retry_join), but asks one address after the other, and one that is dead takes it ten
seconds; so each is asked here, all at once.
Does not: start Serf's agent, or say anything in the cluster (agent.py does).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from fusisd.serf.client import DOORBELL, SerfClient, SerfError
from fusisd.serf.values import Member
from fusisd.tags import BALANCER_ROLE, ROLE_TAG
from pyipvs.model import endpoint

log = logging.getLogger(__name__)

PERIOD_S = 1.0
OTHERS_PERIOD_S = 10.0  # while one is joined, for those that are not


class Joining:
    """What this server has joined."""

    def __init__(
        self, addresses: tuple[str, ...], port: int, client: Callable[[], SerfClient], news: Callable[[], None]
    ) -> None:
        """The balancers' addresses and where they gossip; `client` makes one that is not connected yet; `news` is called
        when a balancer has answered."""
        self._addresses, self._port, self._client, self._news = addresses, port, client, news
        self.alive: tuple[str, ...] = ()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the balancers gossip."""
        return tuple(endpoint(address, self._port) for address in self._addresses)

    def look(self, members: Iterable[Member]) -> None:
        """Which balancers Serf's list shows alive; none when there is no list."""
        ours = (m for m in members if m.tags.get(ROLE_TAG) == BALANCER_ROLE or m.address in self._addresses)
        self.alive = tuple(sorted(member.address for member in ours if member.status == "alive"))

    async def run(self) -> None:
        """Join whoever is not joined, for ever: a balancer that comes later is found by nobody else."""
        said, due_s, now = "", 0.0, asyncio.get_running_loop().time
        while True:
            missing = [endpoint(address, self._port) for address in self._addresses if address not in self.alive]
            if missing and (not self.alive or now() >= due_s):
                due_s = now() + OTHERS_PERIOD_S
                failures = await asyncio.gather(*(self._join(where) for where in missing))
                if all(failures) and failures[0] != said:
                    said = failures[0]
                    log.warning("not joined reason=%s next_try_s=%.1f", said, OTHERS_PERIOD_S if self.alive else PERIOD_S)
            await asyncio.sleep(PERIOD_S)

    async def _join(self, where: str) -> str:
        """Why not, "" when it answered."""
        client = self._client()
        try:
            await client.connect()
            await client.join([where])
            await client.event(DOORBELL)
        except SerfError as error:
            return " ".join(str(error).split())  # Serf's words have several lines
        finally:
            await client.close()
        self._news()
        return ""
