"""Makes the host follow the latest wish, beside the event loop: sysctls, NAT, VIPs, announcements.

Level-triggered: one task works off the newest wish; what is wanted meanwhile replaces it. Commands of the host take tens
of milliseconds, so they run in a thread of their own that owns nothing. Making: sysctls, NAT, VIP, announcement (no
packet comes before all is ready). Breaking: VIP first, then NAT. Only VIPs noted as ours before they were added are ever
removed; an address that is on the host already is external and left alone.
Does not: decide what is wanted (target.py), or touch IPVS.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from fusisd.errors import FusisError
from fusisd.kernel import addresses, sysctl
from fusisd.kernel.announce import AnnounceError, announce
from fusisd.kernel.nat import Nat
from fusisd.model import HostSeen, HostWanted, Masquerade
from fusisd.ports import LocalStore, StoreCall

log = logging.getLogger(__name__)

AUDIT_PERIOD_S = 10.0  # how often our VIPs are looked for (networkd and others remove addresses)
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
ANNOUNCE_AFTER_S = (0.0, 1.0, 2.0, 5.0)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class _Work:
    """The result of working a wish off."""

    seen: HostSeen
    added: frozenset[str] = frozenset()


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
        self._nat = Nat()
        self._wanted = HostWanted()
        self._bell = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, "host")
        self._seen = HostSeen()
        self._nat_applied: frozenset[Masquerade] | None = None
        self._announcements: set[asyncio.TimerHandle] = set()

    def want(self, wanted: HostWanted) -> None:
        """See ports.HostPort."""
        self._wanted = wanted
        self._bell.set()

    async def run(self) -> None:
        """Work wishes off until cancelled; then everything stays as it is."""
        failures = 0
        try:
            while True:
                self._bell.clear()
                work = await self._work(self._wanted)
                self._seen = replace(work.seen, settled=not self._bell.is_set())
                for vip in work.added:
                    self._announce_soon(vip)
                self._on_seen(self._seen)
                failures = failures + 1 if work.seen.failures else 0
                pause_s = RETRY_S[min(failures, len(RETRY_S)) - 1] if failures else AUDIT_PERIOD_S
                try:
                    async with asyncio.timeout(pause_s):
                        await self._bell.wait()
                except TimeoutError:
                    pass  # time to look after our VIPs, or to try again
        finally:
            for handle in self._announcements:
                handle.cancel()
            self._executor.shutdown(wait=False)

    async def _work(self, wanted: HostWanted) -> _Work:
        failures: dict[str, str] = {}
        await self._switches(wanted, failures)
        try:
            owned = await self._store_call(self._local.owned, "vip")
            there = await self._call(addresses.present)
        except FusisError as error:
            return _Work(replace(self._seen, failures={**failures, "addresses": str(error)}))
        external = frozenset(vip for vip in wanted.vips if vip in there and vip not in owned)
        await self._withdraw({vip: owned[vip] for vip in owned if vip not in wanted.vips}, there, failures)
        await self._masquerade(wanted, failures)
        added = await self._add(wanted.vips - external - there.keys(), failures)
        try:
            there = await self._call(addresses.present)
            owned = await self._store_call(self._local.owned, "vip")
        except FusisError as error:
            failures["addresses"] = str(error)
        ours = frozenset(vip for vip in owned if vip in there)
        return _Work(HostSeen(ours, external, self._nat_applied or frozenset(), failures), added)

    async def _switches(self, wanted: HostWanted, failures: dict[str, str]) -> None:
        """Set the sysctls; each previous value is noted before its change."""
        if not self._sysctls:
            return
        ipv6 = any(":" in vip for vip in wanted.vips)
        loop = asyncio.get_running_loop()

        def note(name: str, previous: str) -> None:
            known = asyncio.run_coroutine_threadsafe(self._note_sysctl(name, previous), loop)
            known.result(10.0)

        for row in sysctl.rows(bool(wanted.masquerades), ipv6, sysctl.kernel_version()):
            try:
                await self._call(sysctl.apply, row, note)
            except (FusisError, TimeoutError) as error:
                failures[f"sysctl {row.name.replace('/', '.')}"] = str(error)

    async def _note_sysctl(self, name: str, previous: str) -> None:
        """The first value noted is the one to go back to."""
        if name not in await self._store_call(self._local.owned, "sysctl"):
            await self._store_call(self._local.claim, "sysctl", {name: previous})
        log.info("sysctl %s was=%s", name, previous)

    async def _withdraw(self, vips: dict[str, str], there: dict[str, str], failures: dict[str, str]) -> None:
        for vip, iface in vips.items():
            try:
                if there.get(vip) == iface:
                    await self._call(addresses.remove, {vip: iface})
                    log.info("vip %s removed from %s", vip, iface)
                await self._store_call(self._local.release, "vip", [vip])
            except FusisError as error:
                failures[f"vip {vip}"] = str(error)

    async def _masquerade(self, wanted: HostWanted, failures: dict[str, str]) -> None:
        """Rules only grow stale by our own doing, so they are written when they change (and once after a start)."""
        if self._nat_applied == wanted.masquerades:
            return
        try:
            if self._nat_applied is None and not wanted.masquerades and not await self._call(self._nat.leftover):
                self._nat_applied = wanted.masquerades
                return
            await self._call(self._nat.apply, wanted.masquerades)
        except FusisError as error:
            failures["nat"] = str(error)
        else:
            self._nat_applied = wanted.masquerades

    async def _add(self, vips: frozenset[str], failures: dict[str, str]) -> frozenset[str]:
        """Claim, add; those that are on the interface now."""
        added = set()
        for vip in sorted(vips):
            try:
                await self._store_call(self._local.claim, "vip", {vip: self._iface})
                await self._call(addresses.add, self._iface, [vip])
            except FusisError as error:
                failures[f"vip {vip}"] = str(error)
            else:
                added.add(vip)
                log.info("vip %s added to %s", vip, self._iface)
        return frozenset(added)

    def _announce_soon(self, vip: str) -> None:
        loop = asyncio.get_running_loop()
        for after_s in ANNOUNCE_AFTER_S:
            handle = loop.call_later(after_s, self._announce, vip)
            self._announcements.add(handle)
        self._announcements = {handle for handle in self._announcements if not handle.cancelled()}

    def _announce(self, vip: str) -> None:
        """One frame; a raw send does not block. Not for a VIP that is wanted no more."""
        if vip in self._wanted.vips:
            try:
                announce(self._iface, vip)
            except AnnounceError as error:
                log.warning("%s", error)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something slow of the host in this room's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, functools.partial(function, *args, **kwargs))


class DryHost:
    """The host of --dry-run: every wish is fulfilled in memory at once."""

    def __init__(self, on_seen: Callable[[HostSeen], None]) -> None:
        """`on_seen` is told from the loop, after `want` returned."""
        self._on_seen = on_seen

    def want(self, wanted: HostWanted) -> None:
        """See ports.HostPort."""
        asyncio.get_running_loop().call_soon(self._on_seen, HostSeen(wanted.vips, masquerades=wanted.masquerades))
