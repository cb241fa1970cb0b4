"""fusis-agent: makes this server ready, brings it into the balancers' services, and takes it out again.

It keeps a `serf agent` running (fusisd.serf.supervisor), joins the balancers, prepares the host for each service's method
(preparing.py), checks each service here (states.py says what follows) and sets the tags that say how each stands. SIGTERM
and SIGINT drain, wait, leave and undo; a second one does not wait. SIGUSR2 and kill -9 leave Serf, tags and host as they
are, and the next start finds them: a restart is no outage. SIGHUP reads the configuration again.
Does not: know what the balancer makes of the tags.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusisd.agent import connections, host, orders, signals, states
from fusisd.agent.config import Config, ServiceConfig
from fusisd.agent.joining import Joining
from fusisd.agent.prepare import checked_at
from fusisd.agent.preparing import Preparing
from fusisd.agent.probe import FALL, FAST_INTERVAL_S, INTERVAL_S, failure
from fusisd.agent.record import RecordFile
from fusisd.agent.standing import Standing, Standings, shared
from fusisd.agent.states import Event, State
from fusisd.errors import Invalid, StartupError
from fusisd.fields import list_of, text
from fusisd.serf.client import DOORBELL, SerfClient, SerfError
from fusisd.serf.errors import SupervisorError
from fusisd.serf.keys import load_key
from fusisd.serf.supervisor import ManagedAgent
from fusisd.store.lock import lock_state
from fusisd.systemd import notify
from fusisd.tags import SERVICE_TAG_PREFIX
from pyipvs.model import endpoint

log = logging.getLogger(__name__)

START_LIMIT_S = 15.0  # a Serf agent's RPC answers 0.5 to 1 s after its start
LOOK_PERIOD_S = 5.0  # how long tags that somebody else changed stay changed
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)
GOODBYE_S = 60.0  # for leaving and undoing after the drain, of what systemd is asked for (its own limit: TimeoutStopSec)
QUIET_S = 2.0  # a balancer lists 750 ms after the doorbell at the latest; then no new connection comes
_ORDERED = {"drain": Event.DRAIN, "maint": Event.MAINT, "ready": Event.RESUME}


class Agent:
    """One fusis-agent."""

    def __init__(self, config: Config, again: Callable[[], Config], line: Sequence[str] = ()) -> None:
        """Looks at key file and route and locks the state directory; starts nothing yet. Raises StartupError.

        `again` reads the configuration anew, for a reload; raises Invalid. `line` is the command line, for the doctor.
        """
        self._config, self._again, self._line = config, again, list(line)
        try:
            key = load_key(config.key_file)
            self._joining = Joining(config.balancers, config.bind_port, self._client, lambda: self._rows.changed.set())
            self._address = host.own_address(config.iface, config.balancers[0])
            lock_state(config.state_dir, "fusis-agent")
            self._serf = ManagedAgent(
                state_dir=config.state_dir,
                node=config.name,
                bind=endpoint(self._address, config.bind_port),
                rpc_port=config.rpc_port,
                key=key,
                tags={"role": "agent"},
                join=self._joining.endpoints,
            )
        except SupervisorError as error:
            raise StartupError(str(error)) from None
        self._file = RecordFile(config.state_dir / "host.json", host.machine())
        self._told = self._offered = self._leaving = False

    async def run(self) -> None:
        """Serve until a signal. Raises StartupError when Serf cannot be run."""
        loop = asyncio.get_running_loop()
        self._rows = Standings(loop.time)
        self._preparing = Preparing(self._config, self._address, self._rows, self._file)
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._offered = self._serf.pid() is not None  # before our start
        leave, keep = asyncio.Event(), asyncio.Event()
        signals.listen(leave.set, keep.set, self._reload)
        serving = loop.create_task(self._serve())
        tasks: list[asyncio.Task[Any]] = [serving, loop.create_task(leave.wait()), loop.create_task(keep.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            if leave.is_set():
                leave.clear()
                await self._drained(leave)
        finally:
            for task in (*tasks, *self._watchers.values()):
                task.cancel()
            await asyncio.gather(*tasks, *self._watchers.values(), return_exceptions=True)
        await self._end(stay=keep.is_set())

    async def _end(self, stay: bool) -> None:
        """Leave the cluster and undo what was changed here; or leave all as it is."""
        if stay:
            log.info("stopped and left Serf agent and tags and host as they are")
            return
        await self._serf.stop()
        log.info("left the cluster")
        for sentence in await self._preparing.undo():
            log.warning("not undone reason=%s", sentence)
        with contextlib.suppress(OSError):
            self._config.orders.unlink()

    async def _drained(self, hurry: asyncio.Event) -> None:
        """Say drain, and wait until the balancers must have seen it and no connection is left, or the limit is over."""
        notify(f"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={round((self._config.drain_s + GOODBYE_S) * 1e6)}")
        self._leaving = True
        for row in self._rows:
            self._rows.happened(row.config.name, Event.LEAVE)
        if self._offered:
            configured = dict(self._config.services)  # when we are told at once there are no rows yet
            await self._quiet([*(configured | {row.config.name: row.config for row in self._rows}).values()], hurry)

    async def _quiet(self, services: list[ServiceConfig], hurry: asyncio.Event) -> None:
        """Wait until these have no connection left: QUIET_S at least, the drain's limit at the longest.

        The whole limit when one of them answers on an address that is not here (`at`, a container's): its connections are in
        another network namespace or machine and cannot be counted.
        """
        loop = asyncio.get_running_loop()
        began_s, limit_s = loop.time(), self._config.drain_s
        unseen = any(service.at is not None and not connections.is_here(service.at) for service in services)
        ports = [service.port for service in services]
        while not hurry.is_set() and loop.time() - began_s < limit_s:
            if loop.time() - began_s >= QUIET_S and not unseen and not await asyncio.to_thread(connections.count, ports):
                return
            await asyncio.sleep(0.1)

    async def _serve(self) -> None:
        """Have the Serf agent run and say what we offer, for ever. Raises StartupError."""
        jobs: list[asyncio.Task[None]] = []
        try:
            for service in self._config.services.values():
                self._begin(service)
            await self._start()
            notify("READY=1")
            taking = orders.serve(self._config.orders, self.carry)
            running = (self._serf.supervise(), self._offer(), self._joining.run(), self._preparing.run(), taking)
            jobs += [asyncio.create_task(job) for job in running]
            await asyncio.gather(*jobs)
        except (SupervisorError, OSError) as error:
            raise StartupError(str(error)) from None
        finally:
            for job in jobs:
                job.cancel()

    def _begin(self, service: ServiceConfig) -> None:
        """A service's life begins (anew), with what an operator ordered before."""
        row = self._rows.put(service)
        kept = self._file.record.orders.get(service.name, {})
        row.share = str(kept.get("share", ""))
        if (event := _ORDERED.get(str(kept.get("do", "")))) is not None:
            self._rows.happened(service.name, event, "ordered before")
        if (old := self._watchers.pop(service.name, None)) is not None:
            old.cancel()
        self._watchers[service.name] = asyncio.get_running_loop().create_task(self._watch(row))
        if self._leaving:  # told so before it began
            self._rows.happened(service.name, Event.LEAVE)

    async def _watch(self, row: Standing) -> None:
        """The local check of one service, for ever."""
        config, failed = row.config, 0
        while True:
            if row.state in states.CHECKED:
                reason = await self._failure(row)
                failed = failed + 1 if reason else 0
                if not reason:
                    self._rows.happened(config.name, Event.PASSED)
                elif failed >= FALL:
                    self._rows.happened(config.name, Event.FAILED, reason)
                believed = row.state is State.DOWN if reason else row.state is State.READY
            else:
                believed, failed = True, 0
            await asyncio.sleep(INTERVAL_S if believed else FAST_INTERVAL_S)

    async def _failure(self, row: Standing) -> str:
        if row.config.check.kind == "none":
            return ""
        return await failure(row.config.check, checked_at(row.config, row.vip, self._address), row.config.port)

    # Orders and reloads.

    def carry(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry an order out. Raises Invalid."""
        do, asked = str(order.get("do")), list_of(text)(order.get("services", []), "services")
        names = list(asked) or [row.config.name for row in self._rows]
        share = str(order.get("weight", ""))
        for name in names:  # all of it is looked at before anything is done
            if name not in self._rows:
                raise Invalid(f"this agent has no service {name}", "services")
            if do == "weight":
                shared(self._rows[name].config.weight, share)
        if do == "weight":
            for name in names:
                self._rows.share(name, share)
        elif do in _ORDERED:
            for name in names:
                self._rows.happened(name, _ORDERED[do], "ordered")
        elif do != "status":
            raise Invalid(f"no such order: {do!r}")
        if do != "status":
            self._remember(do, names)
            self._preparing.kick()
        return self._status()

    def _remember(self, do: str, names: list[str]) -> None:
        for name in names:
            kept = dict(self._file.record.orders.get(name, {}))
            kept |= {"share": self._rows[name].share} if do == "weight" else {"do": do}
            self._preparing.keep_order(name, kept)

    def _status(self) -> dict[str, Any]:
        config = self._config
        return {
            "node": config.name,
            "address": self._address,
            "balancers": list(config.balancers),
            "joined": bool(self._joining.alive),
            "joined_to": list(self._joining.alive),
            "problems": list(self._preparing.problems),
            "line": self._line,
            "services": self._rows.rows(),
        }

    def _reload(self) -> None:
        """Read the configuration again; a wrong one changes nothing."""
        if self._leaving:
            log.warning("not reloaded reason=%s", "leaving")
            return
        try:
            config = self._again()
        except Invalid as error:
            log.error("not reloaded reason=%s", error)
            return
        if not self._config.same_node(config):
            fixed = "balancers, key, interface, name, state directory and ports need a restart"
            log.error("not reloaded reason=%s", fixed)
            return
        before, self._config = self._config, config
        self._preparing.reloaded(config)
        for service in config.services.values():
            if before.services.get(service.name) != service:
                self._begin(service)
        for name in before.services.keys() - config.services.keys():
            self._rows.happened(name, Event.LEAVE, "not in the configuration any more")
            self._watchers[name].cancel()
            self._watchers[name] = asyncio.get_running_loop().create_task(self._retire(before.services[name]))
        log.info("reloaded")

    async def _retire(self, service: ServiceConfig) -> None:
        """A service that is not configured any more goes when its connections have ended."""
        await self._quiet([service], asyncio.Event())
        self._rows.drop(service.name)
        self._preparing.kick()

    # Serf.

    async def _start(self) -> None:
        """Find the Serf agent, or start it and see that it runs. Raises StartupError, SupervisorError."""
        started = await self._serf.ensure_running()
        if await self._answers_as_us():
            return
        if not started:
            wanted = (self._config.name, self._address)
            log.warning("another Serf agent ran already and is started anew name=%s address=%s", *wanted)
            await self._serf.stop()
            await self._serf.ensure_running()
            if await self._answers_as_us():
                return
        if self._serf.pid() is not None:
            await self._serf.stop()
        raise StartupError(f"the Serf agent does not run: {_last_line(self._config.state_dir / 'agent.log')}")

    async def _answers_as_us(self) -> bool:
        """Whether it answers within START_LIMIT_S, with our name and address."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + START_LIMIT_S
        while self._serf.pid() is not None and loop.time() < deadline_s:
            client = self._client()
            try:
                await client.connect()
                us = (self._config.name, self._address)
                return us in [(member.name, member.address) for member in await client.members()]
            except SerfError as error:
                log.debug("serf failed reason=%s", error)
            finally:
                await client.close()
            await asyncio.sleep(0.1)
        return False

    async def _offer(self) -> None:
        """Keep the tags right and the cluster joined, for ever, over every restart of the Serf agent."""
        failures = 0
        while True:
            client, bell = self._client(), self._client()
            try:
                await client.connect()
                await bell.connect()
                await self._set_tags(client, bell)
                failures = 0
                while True:  # until the agent is gone: SerfError
                    await self._changed(LOOK_PERIOD_S)
                    await self._set_tags(client, bell)
            except (SerfError, Invalid) as error:
                self._joining.look(())
                pause_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                log.warning("serf failed reason=%s next_try_s=%.1f", error, pause_s)
            finally:
                await client.close()
                await bell.close()
            await self._changed(pause_s)

    async def _changed(self, limit_s: float) -> None:
        """Wait until a state changed, or so long."""
        try:
            async with asyncio.timeout(limit_s):
                await self._rows.changed.wait()
        except TimeoutError:
            return

    async def _set_tags(self, client: SerfClient, bell: SerfClient) -> None:
        """Set our tags, drop those of services offered before, and ring so that the balancer looks at once.

        Serf answers `tags` 0.3 to 0.5 s after it has begun to tell them, so a second connection rings meanwhile.
        """
        self._rows.changed.clear()
        members = await client.members()
        self._joining.look(members)
        self._tell()
        present = next((member.tags for member in members if member.name == self._config.name), {})
        wanted = self._rows.tags(present)
        self._offered = any(tag.startswith(SERVICE_TAG_PREFIX) for tag in (*present, *wanted))
        stale = tuple(tag for tag in present if tag.startswith(SERVICE_TAG_PREFIX) and tag not in wanted)
        self._serf.start_with(wanted)
        if stale or any(present.get(tag) != text for tag, text in wanted.items()):
            await asyncio.gather(client.set_tags(wanted, stale), bell.event(DOORBELL))
            await client.event(DOORBELL)
        notify("STATUS=" + ", ".join(f"{row.config.name} {row.state.value}" for row in self._rows))

    def _tell(self) -> None:
        """That we have joined, the first time."""
        if self._told or not self._joining.alive:
            return
        self._told = True
        for row in self._rows:
            config = row.config
            offer = f"{config.name} on {endpoint(self._address, config.port)}"
            how = f"{config.method}, weight {row.weight}"
            with contextlib.suppress(BrokenPipeError):  # nobody reads our words any more: no reason to end
                print(f"fusis-agent: {offer} ({how}) joined {', '.join(self._joining.alive)}", flush=True)

    def _client(self) -> SerfClient:
        return SerfClient(*self._serf.rpc, auth_key=self._serf.rpc_auth_key)


def _last_line(log_file: Path) -> str:
    """The last words of a Serf agent that ended."""
    try:
        lines = log_file.read_text("utf-8", "replace").split("\n")
    except OSError as error:
        return str(error)
    return next((line.strip() for line in reversed(lines) if line.strip()), f"it says nothing in {log_file}")
