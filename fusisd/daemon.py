"""The life of fusisd: make every part, put them together, serve until told to stop.

Starting: configuration, lock, stores, first read of the kernel, what is durable restored, then HTTP; Serf, checks and host
are conditions that the status shows, not reasons to stay down. Stopping: no new changes, HTTP ends, adapters are
cancelled; IPVS, VIPs and the managed Serf agent stay as they are, so that a restart moves no traffic.
This is the only room that reads the clock and hands it on. Does not: decide anything about balancing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import importlib.metadata
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fusisd import heartbeat, logs, systemd
from fusisd.bridge import Bridge
from fusisd.committer import Committer
from fusisd.config import RELOADED, Config
from fusisd.control import Control
from fusisd.counts import Counts
from fusisd.door import Door
from fusisd.errors import FusisError, StartupError, StoreError
from fusisd.health.asking import DIRECT, Way
from fusisd.health.monitor import Monitor
from fusisd.health.probes import probe
from fusisd.inbox import Beginning, MembersSeen, ProbeChanged, SerfState, Told
from fusisd.journal import Journal
from fusisd.kernel import addresses
from fusisd.kernel.command import CommandError
from fusisd.kernel.host import DryHost, HostPlumbing
from fusisd.kernel.ipvs import IpvsKernel, may_change_networks
from fusisd.model import CheckTarget, Health, Path
from fusisd.notes import drains_of, paths_of
from fusisd.routing import source_towards
from fusisd.serf.client import MembersSeen as SerfMembers
from fusisd.serf.client import SerfClient, SerfError, SerfLost, connected
from fusisd.serf.errors import SupervisorError
from fusisd.serf.keys import load_or_make_key, load_secret
from fusisd.serf.supervisor import ManagedAgent
from fusisd.statistics import Statistics
from fusisd.store.sqlite import SqliteIntents, SqliteLocal, lock_state, machine_identity, open_database, set_aside
from fusisd.store.thread import StoreThread
from fusisd.tags import BALANCER_ROLE, ROLE_TAG
from fusisd.web.certificate import Certificate
from fusisd.web.front import Front
from fusisd.web.server import TcpListener, WebServer
from pyipvs import IPVS, IPVSError, ServiceKey, TableProbe
from pyipvs.model import endpoint

log = logging.getLogger(__name__)
clock = time.monotonic

STORE = "fusisd.db"
SERF_RETRY_S = 5.0
SERF_START_LIMIT_S = 15.0


@dataclass(slots=True)
class Stores:
    """Both stores and what they held at the start."""

    intents: SqliteIntents
    local: SqliteLocal
    beginning: Beginning


class Daemon:
    """One fusisd."""

    def __init__(self, config: Config, reread: Callable[[], Config]) -> None:
        """Nothing is touched before `run`. `reread` reads the configuration as it is now; raises StartupError."""
        self._config, self._reread = config, reread
        self._counts = Counts()
        self._store_call = StoreThread(self._counts.storing.note, clock)
        self._control: Control | None = None
        self._front: Front | None = None
        self._own: list[str] = []

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop. Raises StartupError."""
        config = self._config
        lock_state(config.state_dir)
        gc.disable()  # a start makes a great many values that stay: looking through them again and again finds nothing
        own = self._own = [] if config.dry_run else _own_addresses(config)
        kernel = _open_kernel(config.dry_run)
        stores = await self._open_stores(own)
        host = self._host(stores)
        monitor = Monitor(self._probe, self._probe_changed, clock)
        beginning = stores.beginning
        intent, drains = beginning.intent, dict(beginning.drains)
        committer = Committer(stores.intents, stores.local, self._store_call, intent, drains, clock)
        told = Told(committer.gone, committer.remember, committer.drained, committer.paths)
        epoch = f"{time.time_ns() // 1_000_000:x}"
        control = Control(kernel, host, monitor, clock, beginning, told, self._counts, Journal(clock, time.time, epoch))
        self._control = control
        committer.attach(control, Door(control, host))
        control.start(await self._claim_missing(control, stores))
        statistics = Statistics(kernel, clock)
        bridge = Bridge(asyncio.get_running_loop(), control, committer, statistics, self._counts, clock)
        self._front = front = self._made_front(bridge, control, own)
        web = front.server
        web.start()
        gc.collect()
        gc.freeze()  # what is there now stays, and no later collection has to walk it
        gc.enable()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        stop = _stop_signal()  # before anybody is told that we are ready, and may tell us to end
        _ready(web, config.log_format)
        beat = heartbeat.beat(self._counts.lagging, clock)
        try:
            await _until_stopped([control.run(), committer.run(), beat, front.look_after(), *self._others(host, own)], stop)
        finally:
            systemd.notify("STOPPING=1")
            bridge.close()
            await asyncio.get_running_loop().run_in_executor(None, web.stop)
            await monitor.close()
            self._store_call.close()
            log.info("stopped and left IPVS and VIPs and Serf as they are")

    def _others(self, host: HostPlumbing | DryHost, own: list[str]) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs besides, as it was asked for."""
        if (watched_s := systemd.watchdog_s()) is not None:
            yield systemd.keep_alive(watched_s)
        if isinstance(host, HostPlumbing):
            yield host.run()
        if self._config.serf != "off":
            yield self._serf(own)

    async def _open_stores(self, own: list[str]) -> Stores:
        path = self._config.state_dir / STORE
        try:
            if self._config.recover_store:
                log.warning("store set aside path=%s", await self._store_call(set_aside, path))
            database = await self._store_call(open_database, path)
            intents = SqliteIntents(database, path)
            local = await self._store_call(SqliteLocal, database, path, machine_identity())
            intent = await self._store_call(intents.load)
            owned = await self._store_call(local.owned, "service")
            remembered = await self._store_call(local.remembered)
            drains = drains_of(await self._store_call(local.owned, "drain"))
            paused = await self._store_call(local.owned, "pause")
            withdrawn = await self._store_call(local.owned, "withdraw")
            noted = await self._store_call(local.owned, "path")
            vips = frozenset(await self._store_call(local.owned, "vip"))
        except StoreError as error:
            raise StartupError(str(error)) from None
        keys = frozenset(ServiceKey.parse(key) for key in (*owned, *noted))
        expected = self._config.serf != "off"
        until_s = float(paused.get("until", "0"))
        config, facts, paths = self._config, self._facts(own), paths_of(noted)
        known = (drains, until_s, vips, paths, config.path_marks)
        out, policy = withdrawn.get("withdrawn") == "true", replace(config.policy, own=frozenset(own))
        beginning = Beginning(intent, keys, remembered, expected, *known, facts, policy, out)
        return Stores(intents, local, beginning)

    async def _claim_missing(self, control: Control, stores: Stores) -> frozenset[ServiceKey]:
        """Services that are wanted, not ours yet and not in the kernel (after a reboot all of them): they become ours."""
        wanted = {service.key: service.name for service in control.intent.services.values()}
        present = control.look()
        missing = {key: name for key, name in wanted.items() if key not in control.owned and key not in present}
        try:
            await self._store_call(stores.local.claim, "service", {str(key): name for key, name in missing.items()})
        except StoreError as error:
            raise StartupError(str(error)) from None
        return frozenset(missing)

    def _host(self, stores: Stores) -> HostPlumbing | DryHost:
        if self._config.dry_run:
            return DryHost(self._enter)
        return HostPlumbing(self._config.vip_iface, stores.local, self._store_call, self._enter, self._config.sysctls)

    def _made_front(self, bridge: Bridge, control: Control, own: list[str]) -> Front:
        loopback = ["127.0.0.1", "::1"] if socket.has_ipv6 and _has_address("::1") else ["127.0.0.1"]
        reachable = (*loopback, *own)

        def is_vip(address: str) -> bool:
            """Ours, or one that others manage, unless it is also how this host is reached."""
            return address in control.host.vips or (address in control.host.external and address not in reachable)

        return Front(self._config, bridge, reachable, is_vip, time.time)

    def _facts(self, own: list[str]) -> dict[str, object]:
        config = self._config
        serf = {"mode": config.serf, "address": own[0] if own else "", "port": config.serf_bind_port}
        try:
            version = importlib.metadata.version("pyipvs")
        except importlib.metadata.PackageNotFoundError:
            version = "unpackaged"
        ifaces = {"iface": config.iface, "vip_iface": config.vip_iface}
        return {"version": version, **ifaces, "dry_run": config.dry_run, "serf": serf}

    async def _serf(self, own: list[str]) -> None:
        """Keep a Serf agent (when it is ours to keep) and follow its members, for ever."""
        while True:
            try:
                await self._follow_serf(own)
            except (SupervisorError, SerfError, OSError) as error:
                self._enter(SerfState(str(error)))
            await asyncio.sleep(SERF_RETRY_S)

    async def _follow_serf(self, own: list[str]) -> None:
        key_file = self._config.serf_rpc_key
        auth_key, jobs = load_secret(key_file) if key_file is not None else None, []
        if self._config.serf == "managed":
            agent = self._managed_agent(own)
            auth_key = agent.rpc_auth_key
            if await agent.ensure_running():  # its RPC listens about a second after its start
                await (await connected(*agent.rpc, auth_key, SERF_START_LIMIT_S)).close()
            jobs.append(agent.supervise())
        client = SerfClient(*self._config.serf_rpc, auth_key=auth_key)
        try:
            await _until_stopped([*jobs, client.watch(self._serf_seen, self._serf_lost)], asyncio.Event())
        finally:
            await client.close()

    def _managed_agent(self, own: list[str]) -> ManagedAgent:
        config = self._config
        if not own:
            raise SupervisorError(f"{config.iface} has no address to gossip on")
        directory = config.state_dir / "serf"
        directory.mkdir(mode=0o700, exist_ok=True)
        return ManagedAgent(
            state_dir=directory,
            node=f"{socket.gethostname()}-balancer",
            bind=f"[{own[0]}]:{config.serf_bind_port}" if ":" in own[0] else f"{own[0]}:{config.serf_bind_port}",
            rpc_port=config.serf_rpc[1],
            key=load_or_make_key(directory / "key"),
            tags={ROLE_TAG: BALANCER_ROLE},
            join=tuple(endpoint(address, config.serf_bind_port) for address in config.serf_join),
        )

    def _reload(self) -> None:
        """Bring into force what can be without a restart, and say what cannot."""
        try:
            fresh = self._reread()
        except StartupError as error:
            log.error("reload refused reason=%s", error)
            return
        changed = self._config.differing(fresh)
        later = changed - RELOADED
        self._config = replace(self._config, **{name: getattr(fresh, name) for name in changed & RELOADED})
        logs.configure(fresh.log_level, fresh.log_format, sys.stderr)
        self._enter(replace(fresh.policy, own=frozenset(self._own)))
        if self._front is not None:
            self._front.reload()
        log.info("reloaded changed=%s", ",".join(sorted(changed & RELOADED)) or "-")
        if later:
            log.warning("reloaded in part needs_restart=%s", ",".join(sorted(later)))

    def _enter(self, value: Any) -> None:
        if self._control is not None:
            self._control.enter(value)

    async def _probe(self, target: CheckTarget, timeout_s: float) -> str:
        return await probe(target, timeout_s, DIRECT if target.path is None else self._way(target.path))

    def _way(self, path: Path) -> Way:
        """Marked for its service, and from an address that is no VIP: the real server has those itself. Raises OSError."""
        control = self._control
        mark, source = control.marks.mark(path) if control is not None else None, source_towards(path.address)
        if control is None or mark is None or source in control.host.vips:
            raise OSError(errno.EADDRNOTAVAIL, f"there is no mark or no own address to ask {path} from")
        return Way(mark, source)

    def _probe_changed(self, target: CheckTarget, health: Health) -> None:
        self._enter(ProbeChanged(target, health))

    def _serf_seen(self, seen: SerfMembers) -> None:
        self._enter(SerfState(""))
        self._enter(MembersSeen(seen.members))

    def _serf_lost(self, lost: SerfLost) -> None:
        self._enter(SerfState(lost.reason))


def _stop_signal() -> asyncio.Event:
    """Set when SIGTERM or SIGINT comes."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _until_stopped(jobs: list[Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    """Run the jobs until told to stop or until one of them ends; then cancel the others."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(job) for job in jobs]
    waiting = loop.create_task(_wait(stop))
    try:
        done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # what ended a job for good ends us too
    finally:
        for task in (*tasks, waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


def _open_kernel(dry_run: bool) -> IpvsKernel:
    if dry_run:
        from pyipvs.testing import FakeKernel  # here, for a start of the other kind has no use for it

        log.warning("dry run meaning=%s", "IPVS and addresses exist in memory only, no packet is balanced")
        return IpvsKernel(IPVS(transport=FakeKernel()), None)
    if not may_change_networks():
        raise StartupError("fusisd changes IPVS, addresses and sysctls: run it as root or with CAP_NET_ADMIN and CAP_NET_RAW"
                           " (docs/fusisd.service), or try it with --dry-run")  # fmt: skip
    try:
        return IpvsKernel(IPVS(), TableProbe())
    except IPVSError as error:
        raise StartupError(str(error)) from None


def _own_addresses(config: Config) -> list[str]:
    """The own addresses of the interface that clients come in on; that for VIPs must be there, too. Raises StartupError."""
    options = {config.iface: "--iface", config.vip_iface: "--vip-iface"}
    for iface, option in options.items():
        if iface not in dict(socket.if_nameindex()).values():
            raise StartupError(f"{option} {iface}: no such interface (see `ip -brief address`)")
    try:
        return addresses.primary(config.iface)
    except CommandError as error:
        raise StartupError(str(error)) from None


def _has_address(address: str) -> bool:
    with contextlib.suppress(CommandError):
        return address in addresses.present()
    return False


def _ready(web: WebServer, log_format: str) -> None:
    ports = sorted({listener.port for listener in web.addresses if isinstance(listener, TcpListener)})
    for listener in web.addresses:
        log.info("listening where=%s", listener)
    if log_format == "text":  # else one line of the journal would be no JSON
        print(f"Listening and serving HTTP on {', '.join(f':{port}' for port in ports)}", flush=True)
    systemd.notify("READY=1")


def _cleanup(config: Config) -> int:
    """Undo what a fusisd that runs no more did to this machine; status 1 when something of it is left."""
    from fusisd.kernel.cleanup import cleanup

    lock_state(config.state_dir)
    path = config.state_dir / STORE
    report = cleanup(SqliteLocal(open_database(path), path, machine_identity()), IPVS)
    for sentence in report.done or ["nothing of ours was there"]:
        print(sentence)
    for sentence in report.left:
        print(f"left: {sentence}", file=sys.stderr)
    return 1 if report.left else 0


def check(config: Config) -> int:
    """Read the files that the configuration names, as a start would; the exit status. An interface that is not here is only
    said, for this may be another machine."""
    for iface in {config.iface, config.vip_iface} - {""}:
        if not config.dry_run and iface not in dict(socket.if_nameindex()).values():
            print(f"fusisd: this machine has no interface {iface}: on the balancer fusisd would not start", file=sys.stderr)
    try:
        if config.tls is not None:
            Certificate(*config.tls)
        if config.serf_rpc_key is not None:
            load_secret(config.serf_rpc_key)
    except (StartupError, SupervisorError) as error:
        print(f"fusisd: {error}", file=sys.stderr)
        return 2
    print("fusisd: the configuration is right")
    return 0


def main(config: Config, reread: Callable[[], Config]) -> int:
    """Run fusisd to its end; the exit status. `reread`: see Daemon."""
    logs.configure(config.log_level, config.log_format, sys.stderr)
    try:
        if config.cleanup:
            return _cleanup(config)
        asyncio.run(Daemon(config, reread).run())
    except StartupError as error:
        print(f"fusisd: {error}", file=sys.stderr)
        return error.status
    except FusisError as error:
        print(f"fusisd: {error}", file=sys.stderr)
        return 1
    return 0
