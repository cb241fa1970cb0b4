"""What must be known before a command is accepted, beyond intent: the kernel, the wire, what Serf brought.

`prepared` may take its time (who answers for an address, which VIP is free) and runs before the command waits for the
store; `check` is quick and runs when its turn has come. What is refused here was neither stored nor applied.
Does not: change anything, or know what intent alone forbids (state.py does).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyipvs
from fusisd import state
from fusisd.commands import AddService, Adopt, Command, DeleteDestination, One, Pause, SetGlobals, Together, UpdateService
from fusisd.control import Control
from fusisd.errors import Conflict, FusisError, Invalid, NotFound, Unavailable
from fusisd.limits import kernel_service
from fusisd.model import Destination, Intent, Service, checked_name
from fusisd.ports import HostPort, KernelService
from pyipvs import ServiceKey

ANY = {4: "0.0.0.0", 6: "::"}
"""The address of a service whose VIP is to be allocated, by IP version."""
MAX_PAUSE_S = 86400.0
AT_ONCE = 200  # questions on the wire of one command: each takes a second when nobody answers, and a socket
TRIES = 8  # addresses asked for on the wire until one is free


class Door:
    """Checks commands. Lives on the loop."""

    def __init__(self, control: Control, host: HostPort) -> None:
        """`control` owns the kernel, `host` knows the wire."""
        self._control, self._host = control, host
        self._promised: set[str] = set()

    async def prepared(self, command: Command, intent: Intent) -> Command:
        """The command with its VIP allocated, once nobody else answers for it. Raises Refused."""
        if not isinstance(command, Together):
            return await self._prepared(command, intent, set())
        return await self._all_prepared(command, intent)

    async def _all_prepared(self, command: Together, intent: Intent) -> Together:
        """Side by side, since each may wait a second; an address is asked for once. When one is refused all are."""
        asked, slots = set[str](), asyncio.Semaphore(AT_ONCE)

        async def prepared(one: One) -> One:
            async with slots:
                with state.refusals_of(one):
                    return await self._prepared(one, intent, asked)

        for one in command.commands:
            if isinstance(one, SetGlobals):
                intent = state.apply(intent, await prepared(one))
        tasks: dict[int, asyncio.Task[One]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for place, one in enumerate(command.commands):
                    if isinstance(one, AddService | UpdateService):
                        tasks[place] = group.create_task(prepared(one))
        except BaseException as error:
            done = [task for task in tasks.values() if not task.cancelled() and task.exception() is None]
            self.answered(Together(tuple(task.result() for task in done)))
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        return Together(tuple(tasks[i].result() if i in tasks else one for i, one in enumerate(command.commands)))

    async def _prepared(self, command: One, intent: Intent, asked: set[str]) -> One:
        """`asked`: addresses that need not be asked for again."""
        if isinstance(command, SetGlobals) and command.ranges is not None:
            checked_ranges(command.ranges)
        if not isinstance(command, AddService | UpdateService):
            return command
        service = command.service
        known = intent.services.get(service.name)
        if isinstance(command, UpdateService):
            state.service_named(intent, service.name)
        if service.key.address in ANY.values():
            return replace(command, service=await self._allocated(service, known, intent))
        if known is not None and known.key.address == service.key.address:
            return command
        address = service.key.address
        if service.vip_managed and address is not None and address not in asked and address not in self._control.host.vips:
            asked.add(address)
            await self._check_wire(address)
        return command

    def answered(self, command: Command) -> None:
        """The command is committed, or refused: an address that was kept for it is free for others."""
        for one in state.parts(command):
            if isinstance(one, AddService | UpdateService) and one.service.key.address is not None:
                self._promised.discard(one.service.key.address)

    def check(self, command: One, intent: Intent) -> One:
        """What only the owner of the kernel knows; the command, an adoption with what it found. Raises Refused."""
        match command:
            case AddService(service) | UpdateService(service):
                self._check_kernel(service, intent)
            case Adopt(name, key, _, wanted):
                if (found := self._foreign(key)) is None:
                    return replace(command, service=None)
                seen = service_of(name, found)
                if wanted is not None:
                    self._check_loadable(wanted)
                return replace(command, service=seen if wanted is None else self._as_wanted(wanted, seen))
            case Pause(seconds) if not 0 <= seconds <= MAX_PAUSE_S:
                raise Invalid(f"a pause of {seconds:g} s must be at most {MAX_PAUSE_S:g} s", "seconds")
            case DeleteDestination(service_name, name):
                self._check_serf_brought(service_name, name, intent)
        return command

    def _check_kernel(self, service: Service, intent: Intent) -> None:
        """A foreign service of that key, or a scheduler that cannot be loaded, tried once before it is promised."""
        if (known := intent.services.get(service.name)) is not None and state.settings(known) == state.settings(service):
            return
        if service.key.mark is not None and service.key.mark in (marks := self._control.marks.range):
            span = f"{marks.start} to {marks.stop - 1}"
            raise Conflict(f"{service.key}: marks {span} are kept for path checks; take another, or see --path-marks", "key")
        if self._foreign(service.key) is not None:
            raise Conflict(f"{service.key} is in the kernel already and not ours: adopt it, or delete it there first")
        self._check_loadable(service)

    def _as_wanted(self, wanted: Service, found: Service) -> Service:
        """What is wanted, with the destinations that the kernel has besides and that no server in Serf is."""
        places = {one.key for one in wanted.destinations.values()}
        for node in self._control.nodes.values():
            if (offer := node.offers.get(wanted.name)) is not None:
                places.add((offer.address or node.address, offer.port))
        besides = {name: one for name, one in found.destinations.items() if one.key not in places}
        return replace(wanted, destinations={**besides, **wanted.destinations})

    def _check_loadable(self, service: Service) -> None:
        try:
            wanted = kernel_service(service)
        except ValueError:
            return  # state.apply says what is wrong, and which field
        try:
            refused = self._control.cannot_load(wanted)
        except OSError as error:
            raise Unavailable(f"the kernel cannot be asked for scheduler {service.scheduler}: {error}") from None
        if refused:
            field = "persistence_engine" if service.persistence_engine else "scheduler"
            raise Invalid(f"this kernel cannot balance so: {refused}", field)

    def _check_serf_brought(self, service_name: str, name: str, intent: Intent) -> None:
        """Of a destination that no operator named: that Serf brought it."""
        service = intent.services.get(service_name)
        if service is None or name in service.destinations:
            return
        node = self._control.nodes.get(name)
        if node is None or service_name not in node.offers:
            raise NotFound(f"service {service_name} has no destination {name!r}")

    def _foreign(self, key: ServiceKey) -> KernelService | None:
        try:
            return self._control.foreign(key)
        except OSError as error:
            raise Unavailable(f"the kernel cannot be asked whether {key} is free: {error}") from None

    async def _allocated(self, service: Service, known: Service | None, intent: Intent) -> Service:
        """The service with an address of the ranges that nobody uses; the one it has when it exists already."""
        family = 6 if service.key.family is pyipvs.Family.INET6 else 4
        if known is not None and known.key.address is not None and known.key.family is service.key.family:
            return _at(service, known.key.address)
        taken = {other.key.address for other in intent.services.values()} | self._promised | await self._own()
        for tried, address in enumerate(free(intent.ranges, family, taken), 1):
            self._promised.add(address)  # until the command is answered: somebody else may ask meanwhile
            try:
                in_use = await self._answer(address)
            except BaseException:
                self._promised.discard(address)
                raise
            if not in_use:
                return _at(service, address)
            self._promised.discard(address)
            if tried == TRIES:
                raise Unavailable(f"the first {TRIES} free addresses of the VIP ranges all answer on the wire")
        why = "no VIP is free" if intent.ranges else "there is no VIP range"
        raise Conflict(f"{why}: give an address, or add a range", "address")

    async def _check_wire(self, address: str) -> None:
        if mac := await self._answer(address):
            raise Conflict(f"{address} is in use: {mac} answers for it on the wire", "address")

    async def _answer(self, address: str) -> str:
        try:
            return await self._host.answers(address)
        except FusisError as error:
            raise Unavailable(f"cannot find out whether {address} is in use: {error}") from None

    async def _own(self) -> frozenset[str]:
        try:
            return await self._host.own()
        except FusisError as error:
            raise Unavailable(f"cannot find out which addresses this host has: {error}") from None


def free(ranges: Iterable[str], version: int, taken: Iterable[str | None]) -> Iterator[str]:
    """The addresses of these networks that are not taken, in order; never a network's own or broadcast address."""
    used = set(taken)
    for network in (ipaddress.ip_network(text) for text in ranges):
        if network.version == version:
            yield from (str(host) for host in network.hosts() if str(host) not in used)


def checked_ranges(ranges: Iterable[str]) -> None:
    """Raises Invalid for what is no network of unicast addresses."""
    for text in ranges:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise Invalid(f"range {text!r} is no network: {error}", "ranges") from None
        if network.is_multicast or network.is_loopback or network.is_unspecified or network.is_link_local:
            raise Invalid(f"range {text} is not of unicast addresses that clients could reach", "ranges")


def service_of(name: str, found: KernelService) -> Service:
    """The service that an adoption makes of what the kernel has; its address stays another's affair. Raises Invalid."""
    checked_name(name)
    seen = found.service
    destinations = [_destination_of(row.destination) for row in found.destinations.values()]
    return Service(
        name,
        seen.key,
        seen.scheduler,
        seen.persistence_s,
        {destination.name: destination for destination in destinations},
        flags=seen.flags,
        netmask=seen.netmask,
        persistence_engine=seen.persistence_engine,
        vip_managed=False,
    )


def _destination_of(seen: pyipvs.Destination) -> Destination:
    name = f"{seen.address}:{seen.port}"
    name = name if name[0].isalnum() else f"v6{name}"
    thresholds = (seen.upper_threshold, seen.lower_threshold)
    return Destination(name, seen.address, seen.port, seen.weight, seen.method, *thresholds, seen.tunnel)


def _at(service: Service, address: str) -> Service:
    return replace(service, key=ServiceKey(service.key.protocol, address, service.key.port))

