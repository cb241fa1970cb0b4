"""The VIPs on the host's interface: made, withdrawn, put back when somebody took one away, and announced.

Each is noted in the local store as ours before it is added; only such ones are ever removed. An address that is on the
host already is external and left alone.
Does not: decide which are wanted, or when to look (host.py does).
"""

from __future__ import annotations

from collections.abc import Set
from functools import partial

from fusisd.errors import FusisError
from fusisd.kernel import addresses
from fusisd.kernel.announce import Announcer, announce
from fusisd.ports import LocalStore, StoreCall

Failures = dict[str, str]


class Vips:
    """What we know of them; lives on the event loop."""

    def __init__(self, iface: str, local: LocalStore, store_call: StoreCall, call: StoreCall) -> None:
        """`store_call` runs a store's function in its thread, `call` a slow one of the host in the host's."""
        self._iface, self._local, self._store_call, self._call = iface, local, store_call, call
        self._there: dict[str, frozenset[str]] = {}
        self._owned: dict[str, str] = {}
        self._held: frozenset[str] = frozenset()  # ours and there when we last looked
        self.announcer = Announcer(partial(announce, iface))

    @property
    def ours(self) -> frozenset[str]:
        """Those that we put there and that are there, as last seen."""
        return frozenset(vip for vip, iface in self._owned.items() if iface in self._there.get(vip, ()))

    def external(self, wanted: frozenset[str]) -> frozenset[str]:
        """Those of the wanted that are on the host by other hands, as last seen."""
        return (wanted & self._there.keys()) - self.ours

    async def own(self) -> frozenset[str]:
        """Every address of the host that we did not put there, and those that are no host's in its networks, now. Raises
        FusisError.

        What is ours is read before and after: a VIP that comes or goes meanwhile is in one of both."""
        before = await self._store_call(self._local.owned, "vip")
        there = await self._call(addresses.present)
        noted = {*before.items(), *(await self._store_call(self._local.owned, "vip")).items()}
        own = (address for address, ifaces in there.items() if not any((address, iface) in noted for iface in ifaces))
        return await self._call(addresses.ends) | frozenset(own)

    async def look(self) -> None:
        """See what is there and what is noted as ours. Raises FusisError."""
        self._owned = dict(await self._store_call(self._local.owned, "vip"))
        self._there = await self._call(addresses.present)

    async def withdraw(self, wanted: frozenset[str], failures: Failures) -> None:
        """Take away those of ours that are not wanted, or stand where they are to be no more (`--vip-iface`); forget those
        that are gone."""
        wanted = frozenset(vip for vip in wanted if self._owned.get(vip, self._iface) == self._iface)
        for vip in self._owned.keys() - wanted:
            self.announcer.drop(vip)
        leaving = {vip: self._owned[vip] for vip in sorted(self.ours - wanted)}
        try:
            kept = await self._call(addresses.remove, leaving)
            failures |= {f"vip {vip}": why for vip, why in kept.items()}
            for vip in leaving.keys() - kept.keys():
                self._there[vip] -= {leaving[vip]}
            await self._forget(self._owned.keys() - wanted - kept.keys())
        except FusisError as error:
            failures["vips"] = str(error)
        self._there = {vip: ifaces for vip, ifaces in self._there.items() if ifaces}
        self._held &= wanted

    async def put(self, wanted: frozenset[str], failures: Failures) -> frozenset[str]:
        """Add those that are missing, and announce them; those among them that somebody had taken away."""
        missing = sorted(wanted - self._there.keys())
        taken = self._held.intersection(missing)
        try:
            await self._add(missing, failures)
        except FusisError as error:
            failures["vips"] = str(error)
        self._held = self.ours & wanted
        return taken

    async def _add(self, missing: list[str], failures: Failures) -> None:
        if not missing:
            return
        claims = {vip: self._iface for vip in missing if self._owned.get(vip) != self._iface}
        if claims:  # what is noted already is put back though the store cannot be written
            await self._store_call(self._local.claim, "vip", claims)
        self._owned |= claims
        refused = await self._call(addresses.add, self._iface, missing)
        failures |= {f"vip {vip}": why for vip, why in refused.items()}
        for vip in missing:
            if vip not in refused:
                self._there[vip] = frozenset({self._iface})
                self.announcer.begin(vip)
        await self._forget(refused.keys())  # the kernel did not take it from us: if it is there, another was faster

    async def _forget(self, vips: Set[str]) -> None:
        if vips:
            await self._store_call(self._local.release, "vip", sorted(vips))
            self._owned = {vip: iface for vip, iface in self._owned.items() if vip not in vips}
