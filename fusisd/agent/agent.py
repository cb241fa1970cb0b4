"""fusis-agent: brings this server into the balancer's service, and takes it out again.

It keeps a `serf agent` running (fusisd.serf.supervisor), joins the balancer and sets the tags that offer the service;
the balancer does the rest. SIGTERM and SIGINT leave the cluster, so that the balancer drains us; SIGHUP and kill -9 leave
the Serf agent running, and the next start finds it: an upgrade is not an outage.
Does not: touch the service itself, addresses or sysctls.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusisd.errors import StartupError
from fusisd.serf.client import DOORBELL, SerfClient, SerfError
from fusisd.serf.supervisor import ManagedAgent, SupervisorError, load_key
from fusisd.store.lock import lock_state

log = logging.getLogger(__name__)

START_LIMIT_S = 15.0  # a Serf agent's RPC answers 0.5 to 1 s after its start
LOOK_PERIOD_S = 5.0  # how long tags that somebody else changed stay changed
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said. `iface` None: the interface of the route to the balancer."""

    balancers: tuple[str, ...]
    key_file: Path
    service: str
    port: int
    weight: int
    mode: str
    iface: str | None
    name: str
    state_dir: Path
    rpc_port: int
    bind_port: int

    def tags(self) -> dict[str, str]:
        """The Serf tags that offer the service (docs/tags.md)."""
        return {"role": "agent", f"s:{self.service}": f"{self.port}/{self.mode}/{self.weight}"}

    def joins(self) -> tuple[str, ...]:
        """Where the balancers gossip."""
        return tuple(_endpoint(address, self.bind_port) for address in self.balancers)


class Agent:
    """One fusis-agent."""

    def __init__(self, options: Options) -> None:
        """Looks at key file and route and locks the state directory; starts nothing yet. Raises StartupError."""
        self._options = options
        try:
            key = load_key(options.key_file)
            self._address = own_address(options.iface, options.balancers[0])
            lock_state(options.state_dir, "fusis-agent")
            self._serf = ManagedAgent(
                state_dir=options.state_dir,
                node=options.name,
                bind=_endpoint(self._address, options.bind_port),
                rpc_port=options.rpc_port,
                key=key,
                tags=options.tags(),
                join=options.joins(),
            )
        except SupervisorError as error:
            raise StartupError(str(error)) from None
        self._told = False

    async def run(self) -> None:
        """Serve until a signal. Raises StartupError when Serf cannot be run."""
        leave, keep = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number, event in ((signal.SIGTERM, leave), (signal.SIGINT, leave), (signal.SIGHUP, keep)):
            loop.add_signal_handler(number, event.set)
        serving = loop.create_task(self._serve())
        tasks: list[asyncio.Task[Any]] = [serving, loop.create_task(leave.wait()), loop.create_task(keep.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if leave.is_set():
            await self._serf.stop()
            log.info("left the cluster")
        else:
            log.info("the Serf agent stays; the next start finds it")

    async def _serve(self) -> None:
        """Have the Serf agent run and say what we offer, for ever. Raises StartupError."""
        jobs: list[asyncio.Task[None]] = []
        try:
            await self._start()
            jobs += [asyncio.create_task(self._serf.supervise()), asyncio.create_task(self._offer())]
            await asyncio.gather(*jobs)
        except SupervisorError as error:
            raise StartupError(str(error)) from None
        finally:
            for job in jobs:
                job.cancel()

    async def _start(self) -> None:
        """Find the Serf agent, or start it and see that it runs. Raises StartupError, SupervisorError."""
        started = await self._serf.ensure_running()
        if await self._answers_as_us():
            return
        if not started:
            log.warning("the Serf agent that runs already is not %s at %s: started anew", self._options.name, self._address)
            await self._serf.stop()
            await self._serf.ensure_running()
            if await self._answers_as_us():
                return
        if self._serf.pid() is not None:
            await self._serf.stop()
        raise StartupError(f"the Serf agent does not run: {_last_line(self._options.state_dir / 'agent.log')}")

    async def _answers_as_us(self) -> bool:
        """Whether it answers within START_LIMIT_S, with our name and address."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + START_LIMIT_S
        while self._serf.pid() is not None and loop.time() < deadline_s:
            client = self._client()
            try:
                await client.connect()
                us = (self._options.name, self._address)
                return us in [(member.name, member.address) for member in await client.members()]
            except SerfError as error:
                log.debug("%s", error)
            finally:
                await client.close()
            await asyncio.sleep(0.1)
        return False

    async def _offer(self) -> None:
        """Keep the tags right and the cluster joined, for ever, over every restart of the Serf agent."""
        failures = 0
        while True:
            client = self._client()
            try:
                await client.connect()
                await self._set_tags(client)
                await self._join(client)
                failures = 0
                while True:  # until the agent is gone: SerfError
                    await asyncio.sleep(LOOK_PERIOD_S)
                    await self._set_tags(client)
            except SerfError as error:
                pause_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                log.warning("%s; next try in %.1f s", error, pause_s)
            finally:
                await client.close()
            await asyncio.sleep(pause_s)

    async def _set_tags(self, client: SerfClient) -> None:
        """Set our tags, drop those of services offered before, and ring so that the balancer looks at once."""
        wanted = self._options.tags()
        present = {member.name: member.tags for member in await client.members()}.get(self._options.name, {})
        stale = tuple(tag for tag in present if tag.startswith("s:") and tag not in wanted)
        if stale or any(present.get(tag) != text for tag, text in wanted.items()):
            await client.set_tags(wanted, stale)
            await client.event(DOORBELL)

    async def _join(self, client: SerfClient) -> None:
        """Join by any balancer. Serf itself goes on trying too (retry_join)."""
        options = self._options
        await client.join(list(options.joins()))
        await client.event(DOORBELL)
        if not self._told:
            self._told = True
            where = _endpoint(self._address, options.port)
            offer = f"{options.service} on {where} ({options.mode}, weight {options.weight})"
            print(f"fusis-agent: {offer} joined {', '.join(options.balancers)}", flush=True)

    def _client(self) -> SerfClient:
        return SerfClient(*self._serf.rpc, auth_key=self._serf.rpc_auth_key)


def own_address(iface: str | None, balancer: str) -> str:
    """The address that this server has towards the balancer, or on that interface. Raises StartupError."""
    if iface is None:
        rows = _ip("route", "get", balancer)
        found = rows[0].get("prefsrc") if rows else None
        if not found:
            raise StartupError(f"there is no route to the balancer {balancer}", 2)
        return str(found)
    family, whole = ("inet6", 128) if ":" in balancer else ("inet", 32)
    addresses = [
        address
        for row in _ip("address", "show", "dev", iface)
        for address in row.get("addr_info", [])
        if address.get("family") == family and address.get("scope") in ("global", "host")
    ]
    if not addresses:
        raise StartupError(f"--iface {iface} has no {family} address", 2)
    # One without a network may be a VIP that was put there for route or tunnel: taken only when there is no other.
    return str(min(addresses, key=lambda row: (row["prefixlen"] == whole, row["scope"] != "global"))["local"])


def _ip(*words: str) -> list[dict[str, Any]]:
    try:
        done = subprocess.run(["ip", "-json", *words], capture_output=True, text=True, timeout=5.0, check=False)
    except FileNotFoundError:
        raise StartupError("the program ip is not installed (Debian: apt-get install iproute2)") from None
    except subprocess.TimeoutExpired:
        raise StartupError(f"ip {' '.join(words)} did not end within 5 s") from None
    if done.returncode != 0:
        raise StartupError(f"ip {' '.join(words)}: {done.stderr.strip()}", 2)
    rows: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return rows


def _last_line(log_file: Path) -> str:
    """The last words of a Serf agent that ended."""
    try:
        lines = log_file.read_text("utf-8", "replace").split("\n")
    except OSError as error:
        return str(error)
    return next((line.strip() for line in reversed(lines) if line.strip()), f"it says nothing in {log_file}")


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def hostname() -> str:
    """This machine's name, the default node name."""
    return socket.gethostname() or f"node-{os.getpid()}"
