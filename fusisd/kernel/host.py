"""Makes the host follow the latest wish, beside the event loop: sysctls, NAT, VIPs, announcements.

Level-triggered: one task works off the newest wish; what is wanted meanwhile replaces it. Commands of the host take tens
of milliseconds, so they run in a thread of their own that owns nothing. Making: sysctls, NAT, VIP, announcement (no
packet comes before all is ready). Breaking: VIP first, then NAT. The kernel's address events have the host looked at
at once; every AUDIT_PERIOD_S it is looked at whatever happened, our NAT rules and the firewall with it.
Does not: decide what is wanted (target.py), or touch IPVS.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from fusisd.errors import FusisError, Invalid
from fusisd.kernel import addresses, answers, firewall, neighbours, sysctl
from fusisd.kernel.events import AddressEvents
from fusisd.kernel.nat import Nat
from fusisd.kernel.sysctl import When
from fusisd.kernel.vips import Failures, Vips
from fusisd.model import HostSeen, HostWanted, Masquerade, Path
from fusisd.notes import row_of
from fusisd.ports import LocalStore, StoreCall

log = logging.getLogger(__name__)

AUDIT_PERIOD_S = 10.0  # when no event comes: networkd and others remove addresses, somebody flushes chains
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
# From an event to the look it asks for: what comes together is looked at once, and when somebody takes our VIPs away
# again and again we put them back more and more slowly, or two daemons would fight at full speed.
HEED_S = (0.05, 1.0, 2.0, 5.0, AUDIT_PERIOD_S)

P = ParamSpec("P")
T = TypeVar("T")


class HostPlumbing:
    """Fulfils ports.HostPort on a real host; lives on the event loop."""

    def __init__(
        self,
        iface: str,
        local: LocalStore,
        store_call: StoreCall,
        on_seen: Callable[[HostSeen], None],
        sysctls: bool = True,
    ) -> None:
        """`store_call(function, *args)` runs a store's function in its thread. `sysctls` False: change none."""
        self._iface, self._local, self._store_call, self._on_seen = iface, local, store_call, on_seen
        self._sysctls = sysctls
        self._executor = ThreadPoolExecutor(1, "host")
        self._vips = Vips(iface, local, store_call, self._call)
        self._nat = Nat()
        self._nat_applied: frozenset[Masquerade] | None = None
        self._right: set[str] = set()  # sysctls that had their value at some time since our start
        self._wanted = HostWanted()
        self._bell = asyncio.Event()
        self._heed: asyncio.TimerHandle | None = None
        self._fights = 0  # looks in a row that found VIPs of ours taken away
        self._audit_s = 0.0  # when the next audit is due, by the loop's clock
        self._nat_families: frozenset[int] = frozenset()
        self._in_the_way: tuple[str, ...] = ()
        self._counts = Counter({"address_events": 0, "vips_restored": 0, "nat_restored": 0})

    @property
    def counts(self) -> Mapping[str, int]:
        """Since the start: `address_events` heeded, `vips_restored` and `nat_restored` (others' hands undone)."""
        return dict(self._counts)

    def want(self, wanted: HostWanted) -> None:
        """See ports.HostPort."""
        self._wanted = wanted
        self._bell.set()

    async def answers(self, address: str) -> str:
        """See ports.HostPort."""
        if address in await self._call(addresses.present):
            return ""
        return await neighbours.answers(self._iface, address)

    async def own(self) -> frozenset[str]:
        """See ports.HostPort."""
        return await self._vips.own()

    async def run(self) -> None:
        """Work wishes off until cancelled; then everything stays as it is."""
        events = self._listen()
        failures = 0
        try:
            while True:
                self._bell.clear()
                seen = await self._turn(self._wanted)
                self._on_seen(seen)
                failures = failures + 1 if seen.failures else 0
                retry_s = RETRY_S[min(failures, len(RETRY_S)) - 1] if failures else AUDIT_PERIOD_S
                audit_s = self._audit_s - asyncio.get_running_loop().time()
                try:
                    async with asyncio.timeout(min(retry_s, max(audit_s, 0.0))):
                        await self._bell.wait()
                except TimeoutError:
                    pass  # time to look after everything, or to try again
        finally:
            if events is not None:
                events.close()
            if self._heed is not None:
                self._heed.cancel()
            self._vips.announcer.close()
            self._executor.shutdown(wait=False)

    def _listen(self) -> AddressEvents | None:
        try:
            return AddressEvents(self._noticed)
        except OSError as error:
            log.warning("no address events reason=%s looked_at_every_s=%.0f", error, AUDIT_PERIOD_S)
            return None

    def _noticed(self) -> None:
        """Something of the addresses changed, our own doing perhaps."""
        if self._heed is None:
            wait_s = HEED_S[min(self._fights, len(HEED_S) - 1)]
            self._heed = asyncio.get_running_loop().call_later(wait_s, self._look_soon)

    def _look_soon(self) -> None:
        self._heed = None
        self._counts["address_events"] += 1
        self._bell.set()

    async def _turn(self, wanted: HostWanted) -> HostSeen:
        """One look at everything, and what it takes to make it as wanted."""
        now_s = asyncio.get_running_loop().time()
        audit = now_s >= self._audit_s
        if audit:
            self._audit_s = now_s + AUDIT_PERIOD_S
        failures: Failures = {}
        taken: frozenset[str] = frozenset()
        await self._switches(sysctl.rows(purposes(wanted), sysctl.kernel_version()), self._iface, failures)
        no_path = await self._let_in(wanted.paths, failures)
        try:
            await self._vips.look()
        except FusisError as error:
            failures["addresses"] = str(error)
            await self._masquerade(wanted, audit, failures)
        else:
            await self._vips.withdraw(wanted.standing, failures)
            await self._masquerade(wanted, audit, failures)
            taken = await self._vips.put(wanted.standing, failures)
        self._counts["vips_restored"] += len(taken)
        if taken or audit:
            self._fights = self._fights + 1 if taken else 0
        return HostSeen(
            vips=self._vips.ours,
            external=self._vips.external(wanted.vips),
            masquerades=self._nat_applied or frozenset(),
            failures=failures,
            warnings=(*await self._warnings(wanted, audit), *answers.warnings(no_path)),
            paths=wanted.paths - no_path.keys(),
            no_path=no_path,
            settled=not self._bell.is_set(),
            counts=self.counts,
            taken=taken & self._vips.ours,
        )

    async def _switches(self, rows: Iterable[sysctl.Row], iface: str, failures: Failures) -> None:
        """Set the sysctls; each previous value is noted before its change, the first one noted is what to go back to."""
        if not self._sysctls:
            return
        seen = await self._call(sysctl.look, rows, iface)
        failures |= {f"sysctl {name}": why for name, why in seen.failures.items()}
        self._right |= seen.right
        for switch in await self._noted(seen.pending, failures):
            try:
                await self._call(sysctl.write, switch)
            except FusisError as error:
                failures[f"sysctl {switch.name}"] = str(error)
            else:
                if switch.value is not None:
                    log.info("sysctl name=%s value=%s was=%s", switch.name, switch.value, switch.previous)

    async def _noted(self, switches: list[sysctl.Switch], failures: Failures) -> list[sysctl.Switch]:
        """Those of the switches that may be written. When the store cannot be: those that are noted already, and those
        that were right since our start, for what there would be to go back to is the value that we set."""
        if not switches:
            return []
        noted: Mapping[str, str] = {}
        try:
            noted = await self._store_call(self._local.owned, "sysctl")
            if fresh := {switch.name: switch.previous for switch in switches if switch.name not in noted}:
                await self._store_call(self._local.claim, "sysctl", fresh)
        except FusisError as error:
            failures["sysctl"] = str(error)
            return [switch for switch in switches if switch.name in noted or switch.name in self._right]
        return switches

    async def _let_in(self, paths: frozenset[Path], failures: Failures) -> dict[Path, str]:
        """Have the answers of path checks let in where they come in; the paths where they cannot, and why."""
        if not paths:
            return {}
        try:
            where, no_path = answers.interfaces(paths, await self._call(addresses.present))
        except FusisError as error:
            return dict.fromkeys(paths, str(error))
        rows = sysctl.rows_for(sysctl.When.PATH_CHECK)
        for iface, led in where.items():
            await self._switches(rows, iface, failures)
            if dropped := await self._call(sysctl.lets_in, iface):
                no_path |= dict.fromkeys(led, dropped)
        return no_path

    async def _masquerade(self, wanted: HostWanted, audit: bool, failures: Failures) -> None:
        """The rules wanted, and those kept for services that were released. Written when they change, once after a
        start, and when an audit finds somebody's hand on them. What a start finds there stays while none is wanted and the
        kernel has services of nobody's: they were ours before the store was lost, and their answers need it."""
        try:
            rows = wanted.masquerades | await self._kept(failures)
            if self._nat_applied is None and not rows and wanted.foreign:
                return
            if rows == self._nat_applied:
                if not audit or await self._call(self._nat.intact):
                    return
                self._counts["nat_restored"] += 1
            elif self._nat_applied is None and not await self._call(self._nat.leftover) and not rows:
                self._nat_applied = rows
                return
            await self._call(self._nat.apply, rows)
        except FusisError as error:
            failures["nat"] = str(error)
        else:
            self._nat_applied = rows

    async def _kept(self, failures: Failures) -> frozenset[Masquerade]:
        """The rules of released services: nobody wants them, and nobody asked to take them away. Raises FusisError."""
        rows = set()
        for text in await self._store_call(self._local.owned, "nat"):
            try:
                rows.add(row_of(text))
            except Invalid as error:
                failures["nat kept"] = str(error)
        return frozenset(rows)

    async def _warnings(self, wanted: HostWanted, audit: bool) -> tuple[str, ...]:
        """What stands in the way and is not ours to change, as of the last audit, and what concerns services of others."""
        families = frozenset(6 if ":" in row.vip else 4 for row in wanted.masquerades)
        if families != self._nat_families:
            self._nat_families, self._audit_s = families, 0.0  # at once, but after this turn has been reported
        elif audit:
            self._in_the_way = await self._look_for_obstacles(families)
        shared = ""
        if wanted.foreign:
            with contextlib.suppress(FusisError):  # the turn has said already that the store cannot be read
                shared = sysctl.shared_warning(await self._store_call(self._local.owned, "sysctl"))
        return (*self._in_the_way, *((shared,) if shared else ()))

    async def _look_for_obstacles(self, families: frozenset[int]) -> tuple[str, ...]:
        if not families:
            return ()
        try:
            closed = await self._call(firewall.warnings, families)
        except FusisError as error:
            closed = (f"cannot tell whether a firewall stops what is forwarded: {error}",)
        scarce = await self._call(sysctl.conntrack_warning)
        return (*closed, *((scarce,) if scarce else ()))

    async def _call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something slow of the host in this room's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, functools.partial(function, *args, **kwargs))


def purposes(wanted: HostWanted) -> frozenset[When]:
    """What the sysctls are wanted for."""
    masquerade = {When.MASQUERADE} if wanted.masquerades else set()
    return frozenset(masquerade | ({When.IPV6} if any(":" in vip for vip in wanted.vips) else set()))


def _dry(wanted: HostWanted) -> HostSeen:
    no_path = dict.fromkeys(wanted.paths, "dry run: nothing is in the kernel")
    return HostSeen(wanted.standing, masquerades=wanted.masquerades, no_path=no_path)


class DryHost:
    """The host of --dry-run: every wish is fulfilled in memory at once."""

    def __init__(self, on_seen: Callable[[HostSeen], None]) -> None:
        """`on_seen` is told from the loop, after `want` returned."""
        self._on_seen = on_seen

    def want(self, wanted: HostWanted) -> None:
        """See ports.HostPort."""
        asyncio.get_running_loop().call_soon(self._on_seen, _dry(wanted))

    async def answers(self, address: str) -> str:
        """See ports.HostPort: nobody is asked."""
        del address
        return ""

    async def own(self) -> frozenset[str]:
        """See ports.HostPort: no address is anybody's."""
        return frozenset()
