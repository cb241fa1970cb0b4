"""The verbs: `IPVS` reads and changes the virtual services of one network namespace.

Keys and destinations may be given as values or as text (`"tcp/10.0.0.1:80"`, `"10.0.0.2:80"`). A verb is one
request and its answer, unless it says otherwise. A handle belongs to the thread and process that made it.
Does not: hold a copy of the table, retry, or decide anything.
"""

from __future__ import annotations

import errno
import os
from _thread import get_ident
from dataclasses import replace
from types import TracebackType
from typing import Any

from pyipvs import wire
from pyipvs.const import Command
from pyipvs.errors import KernelError, ServiceNotFound, error_for
from pyipvs.listing import DestinationList, ServiceList
from pyipvs.model import (
    Destination,
    DestinationStatus,
    ForwardingMethod,
    Info,
    Service,
    ServiceKey,
    ServiceStatus,
    Timeouts,
    check_pair,
    endpoint,
    split_endpoint,
)
from pyipvs.netlink import NetlinkTransport, Transport

KeyLike = ServiceKey | str
DestinationLike = Destination | str
TableSnapshot = dict[ServiceKey, tuple[ServiceStatus, tuple[DestinationStatus, ...]]]

_ON_SERVICE = frozenset({Command.NEW_SERVICE, Command.SET_SERVICE, Command.DEL_SERVICE, Command.GET_SERVICE})


class IPVS:
    """A handle on the kernel's virtual services; needs CAP_NET_ADMIN.

    with IPVS() as ipvs:
        ipvs.add_service("tcp/10.0.0.1:80", scheduler="rr")
        ipvs.add_destination("tcp/10.0.0.1:80", "10.0.0.2:80", method="route")
        print(ipvs.services())

    Every verb may raise IPVSError, and RuntimeError in another thread or process than the opener's.
    """

    def __init__(
        self, netns: str | None = None, timeout_s: float = 3.0, transport: Transport | None = None
    ) -> None:
        """Open the kernel's table of this network namespace, or of `netns` (a name of `ip netns`, or a path).

        `timeout_s` limits the wait for an answer. `transport` replaces the kernel, as FakeKernel does.
        Raises LibraryMissing, ModuleMissing, PermissionDenied (another namespace needs CAP_SYS_ADMIN too).
        """
        self._owner = (get_ident(), _forks)
        self._name = f"netns {netns}" if netns else "this network namespace"
        self._transport: Transport = transport or NetlinkTransport(netns, timeout_s)

    def __enter__(self) -> IPVS:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<IPVS of {self._name} by {type(self._transport).__name__}>"

    def close(self) -> None:
        """Give the socket up; again does nothing."""
        self._transport.close()

    def services(self) -> ServiceList:
        """All services, in no order to rely on."""
        answers = self._ask(Command.GET_SERVICE, "list services", dump=True)
        return ServiceList(map(wire.decode_service, answers))

    def service(self, key: KeyLike) -> ServiceStatus:
        """One service. Raises ServiceNotFound."""
        key = _key(key)
        answers = self._ask(Command.GET_SERVICE, "get service", str(key), wire.encode_key(key))
        return wire.decode_service(b"".join(answers))

    def destinations(self, key: KeyLike) -> DestinationList:
        """The destinations of a service, newest first. Raises ServiceNotFound.

        More than about 80 come in several messages; when another program changes the service meanwhile, some
        may be missing or seen twice (the kernel pages by position). An empty list takes a second request,
        because the kernel gives one for a service that is not there.
        """
        key = _key(key)
        named = wire.encode_key(key)
        answers = self._ask(Command.GET_DEST, "list destinations of", str(key), named, dump=True)
        if not answers:
            self.service(key)
        return DestinationList(wire.decode_destination(answer, key.family) for answer in answers)

    def snapshot(self) -> TableSnapshot:
        """The whole table, one request per service. A service that goes while it is read is left out."""
        table: TableSnapshot = {}
        for status in self.services():
            try:
                table[status.service.key] = (status, tuple(self.destinations(status.service.key)))
            except ServiceNotFound:
                continue
        return table

    def add_service(self, service: Service | KeyLike, **settings: Any) -> None:
        """Make a service: a Service, or a key and the fields of Service as keywords.

        Raises AlreadyExists, SchedulerNotFound, ValueError.
        """
        self._put_service(Command.NEW_SERVICE, "add service", _service(service, settings))

    def update_service(self, service: Service | KeyLike, **settings: Any) -> None:
        """Change scheduler, flags or persistence. Given a key, what is not named stays (one request more).

        Raises ServiceNotFound, SchedulerNotFound, ValueError.
        """
        known = service if isinstance(service, Service) else self.service(service).service
        self._put_service(Command.SET_SERVICE, "update service", replace(known, **settings))

    def delete_service(self, key: KeyLike) -> None:
        """Remove a service and its destinations; their connections end. Raises ServiceNotFound."""
        key = _key(key)
        self._ask(Command.DEL_SERVICE, "delete service", str(key), wire.encode_key(key))

    def add_destination(self, key: KeyLike, destination: DestinationLike, **settings: Any) -> None:
        """Add a destination: a Destination, or `address:port` and the fields of Destination as keywords.

        Raises ServiceNotFound, AlreadyExists, ValueError.
        """
        key, destination = _key(key), _destination(destination, settings)
        check_pair(key, destination)
        what = f"{destination} to {key}"
        self._ask(Command.NEW_DEST, "add destination", what, wire.encode_destination(key, destination))

    def update_destination(self, key: KeyLike, destination: DestinationLike, **settings: Any) -> None:
        """Change a destination. Given as text, what is not named stays (one request more).

        Raises ServiceNotFound, DestinationNotFound, ValueError.
        """
        key = _key(key)
        known = self._known(key, destination) if isinstance(destination, str) else destination
        destination = _changed(known, settings)
        check_pair(key, destination)
        what = f"{destination} of {key}"
        self._ask(Command.SET_DEST, "update destination", what, wire.encode_destination(key, destination))

    def delete_destination(self, key: KeyLike, destination: DestinationLike | tuple[str, int]) -> None:
        """Remove a destination at once, its connections with it; to drain it, set its weight to 0 first.

        Raises ServiceNotFound, DestinationNotFound.
        """
        key = _key(key)
        if isinstance(destination, str):
            destination = split_endpoint(destination)
        address, port = destination.key if isinstance(destination, Destination) else destination
        named = wire.encode_destination_key(key, address, port)
        self._ask(Command.DEL_DEST, "delete destination", f"{endpoint(address, port)} of {key}", named)

    def timeouts(self) -> Timeouts:
        """The connection timeouts of the network namespace."""
        return wire.decode_timeouts(b"".join(self._ask(Command.GET_CONFIG, "get timeouts")))

    def set_timeouts(self, tcp_s: int = 0, tcp_fin_s: int = 0, udp_s: int = 0) -> None:
        """Change connection timeouts, in seconds; 0 leaves one as it is. Raises ValueError."""
        timeouts = Timeouts(tcp_s, tcp_fin_s, udp_s)
        self._ask(Command.SET_CONFIG, "set timeouts", attributes=wire.encode_timeouts(timeouts))

    def info(self) -> Info:
        """IPVS' version and the size of its connection table."""
        return wire.decode_info(b"".join(self._ask(Command.GET_INFO, "get info")))

    def zero(self, key: KeyLike | None = None) -> None:
        """Set the counters of one service and its destinations, or (None) of all, to zero.

        Raises ServiceNotFound.
        """
        if key is None:
            self._ask(Command.ZERO, "zero all counters")
        else:
            key = _key(key)
            self._ask(Command.ZERO, "zero counters of", str(key), wire.encode_key(key))

    def flush(self) -> None:
        """Remove every service of the network namespace, whoever made it."""
        self._ask(Command.FLUSH, "remove all services")

    def _known(self, key: ServiceKey, where: str) -> Destination:
        """The destination that the kernel has at `address:port`."""
        at = split_endpoint(where)
        for row in self.destinations(key):
            if row.destination.key == at:
                return row.destination
        raise error_for("update destination", errno.ENOENT, f"{where} of {key}", on_service=False)

    def _put_service(self, command: Command, operation: str, service: Service) -> None:
        self._ask(command, operation, str(service.key), wire.encode_service(service))

    def _ask(
        self, command: Command, operation: str, what: str = "", attributes: bytes = b"", dump: bool = False
    ) -> list[bytes]:
        """One exchange, with an errno turned into an error that names what was tried."""
        if self._owner != (get_ident(), _forks):
            raise RuntimeError("an IPVS handle belongs to the thread and process that opened it")
        try:
            return self._transport.exchange(command, attributes, dump)
        except KernelError as error:
            raise error_for(operation, error.errno, what, command in _ON_SERVICE) from None


def _key(key: KeyLike) -> ServiceKey:
    return key if isinstance(key, ServiceKey) else ServiceKey.parse(key)


def _service(service: Service | KeyLike, settings: dict[str, Any]) -> Service:
    if isinstance(service, Service):
        return replace(service, **settings) if settings else service
    return Service(_key(service), **settings)


def _destination(destination: DestinationLike, settings: dict[str, Any]) -> Destination:
    if isinstance(destination, Destination):
        return _changed(destination, settings)
    return Destination(*split_endpoint(destination), **settings)


def _changed(destination: Destination, settings: dict[str, Any]) -> Destination:
    """With these settings; a tunnel does not outlive method tunnel."""
    if str(settings.get("method", ForwardingMethod.TUNNEL)) != str(ForwardingMethod.TUNNEL):
        settings = {"tunnel": None} | settings
    return replace(destination, **settings) if settings else destination


def _forked() -> None:
    global _forks  # the only state here; os.getpid would be a third system call in each request
    _forks += 1


_forks = 0  # between the first of our ancestors that imported this and us
os.register_at_fork(after_in_child=_forked)
