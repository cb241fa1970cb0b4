"""The verbs: `IPVS` reads and changes the virtual services of one network namespace.

Keys and destinations may be given as values or as text (`"tcp/10.0.0.1:80"`, `"10.0.0.2:80"`). A verb is one
request and its answer, unless it says otherwise; `apply` and `batch` put many into one. A handle belongs to the
thread and process that made it.
Does not: hold a copy of the table, retry, or decide anything.
"""

from __future__ import annotations

import errno
import os
from _thread import get_ident
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from pyipvs import daemons, rows, wire
from pyipvs.arguments import DestinationLike, KeyLike, destination_of, key_of, place_of, service_of, update_of
from pyipvs.batch import Batch
from pyipvs.changes import (
    ON_SERVICE,
    AddDestination,
    AddService,
    BatchError,
    Change,
    DeleteDestination,
    DeleteService,
    Failure,
    UpdateDestination,
    UpdateService,
)
from pyipvs.const import Command
from pyipvs.daemons import Daemon, DaemonState
from pyipvs.errors import KernelError, ModuleMissing, ServiceNotFound, TimedOut, error_for
from pyipvs.layout import Row
from pyipvs.listing import DestinationList, ServiceList
from pyipvs.model import (
    Destination,
    Info,
    Service,
    ServiceKey,
    ServiceStatus,
    Timeouts,
    endpoint,
)
from pyipvs.netlink import NetlinkTransport, Transport
from pyipvs.ruleset import Entry, Ruleset
from pyipvs.watch import Sample, samples
from pyipvs.writer import Writer, name_service

T = TypeVar("T")
_SURELY_WHOLE = 40  # destinations: half of what one message of a list holds (80, measured on Linux 6.1)
Progress = Callable[[int, int], None]


class IPVS:
    """A handle on the kernel's virtual services; needs CAP_NET_ADMIN.

    with IPVS() as ipvs:
        ipvs.add_service("tcp/10.0.0.1:80", scheduler="rr")
        ipvs.add_destination("tcp/10.0.0.1:80", "10.0.0.2:80", method="route")
        print(ipvs.services())

    Every verb may raise IPVSError, and RuntimeError in another thread or process than the opener's.
    """

    def __init__(
        self, netns: str | int | os.PathLike[str] | None = None, timeout_s: float = 3.0, transport: Transport | None = None
    ) -> None:
        """Open the kernel's table of this network namespace, or of `netns`: a name of `ip netns`, a path, or an open
        file; the caller stays where it is.

        `timeout_s` limits the wait for an answer; not the sending, for which the kernel may make us wait for another
        program's request to end. `transport` replaces the kernel, as FakeKernel does.
        Raises LibraryMissing, ModuleMissing, PermissionDenied (another namespace needs CAP_SYS_ADMIN; that
        CAP_NET_ADMIN is missing shows at the first verb).
        """
        self._owner = (get_ident(), _forks)
        self._name = f"netns {netns}" if netns is not None else "this network namespace"
        self._transport: Transport = transport or NetlinkTransport(netns, timeout_s)
        self._writer, self._reader = Writer(self._transport.longest), rows.Reader()
        self._busy = False  # while a verb waits for the kernel

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
        self._check_free()
        self._transport.close()

    def services(self) -> ServiceList:
        """All services, in no order to rely on.

        Many come in several messages; when another program changes the table meanwhile, some may be missing or
        seen twice (the kernel pages by position).
        """
        parts = self._dump(Command.GET_SERVICE, "list services", lambda part: list(self._reader.services(part)))
        return ServiceList(chain.from_iterable(parts))

    def service(self, key: KeyLike) -> ServiceStatus:
        """One service. Raises ServiceNotFound."""
        return wire.decode_service(self._service(key_of(key)))

    def destinations(self, key: KeyLike) -> DestinationList:
        """The destinations of a service, newest first. Raises ServiceNotFound.

        More than about 80 come in several messages; when another program changes the service meanwhile, some
        may be missing or seen twice (the kernel pages by position). When there are none, or more than 40, a second
        request asks whether the service is there: the kernel's list just ends when it is not.
        """
        return DestinationList(self._rows(key_of(key), rows.FIELDS))

    def scan(self, statistics: bool = True) -> Iterator[Entry]:
        """The table service by service, one request each, for callers who have other things to do in between.

        `statistics` False leaves out connections and counters, and is faster. A service that goes meanwhile is left
        out.
        """
        fields = rows.FIELDS if statistics else rows.CONFIGURED
        for status in self.services():
            try:
                found = self._rows(status.service.key, fields)
            except ServiceNotFound:
                continue
            yield Entry(status.service, status.stats if statistics else None, found)

    def snapshot(self, statistics: bool = True) -> Ruleset:
        """The whole table as a value; see `scan`."""
        return Ruleset.of(self.scan(statistics))

    def watch(self, interval_s: float = 1.0) -> Iterator[Sample]:
        """Snapshots every `interval_s` seconds, with the rates and changes in between; ends when you stop asking."""
        return samples(self.snapshot, interval_s)

    def apply(self, changes: Iterable[Change], progress: Progress | None = None) -> None:
        """Carry out many changes with few system calls, in their order; there is no way back.

        One that fails does not stop the others. `progress` is called with how many are done and how many there are.
        Raises BatchError, with each that failed.
        """
        self._check_owner()
        every = list(changes)
        failures: list[Failure] = []
        done = 0
        while done < len(every):
            part = every[done : done + self._transport.room]
            try:
                count, failed = self._carry_out(part)
            except ModuleMissing as error:  # and the table with it: nothing of this or of what follows is done
                failures += [Failure(change, error) for change in every[done:]]
                break
            failures += [_failure(part[index], code) for index, code in sorted(failed)]
            done += count
            if progress is not None:
                progress(done, len(every))
        if failures:
            raise BatchError(failures, len(every))

    def batch(self) -> Batch:
        """Collect changes in a `with` block and apply them at its end, unless it raises."""
        return Batch(self.apply)

    def add_service(self, service: Service | KeyLike, **settings: Any) -> None:
        """Make a service: a Service, or a key and the fields of Service as keywords.

        Raises AlreadyExists, SchedulerNotFound, ValueError.
        """
        self._do(AddService(service_of(service, settings)))

    def update_service(self, service: Service | KeyLike, **settings: Any) -> None:
        """Change scheduler, flags or persistence. Given a key, what is not named stays (one request more).

        Raises ServiceNotFound, SchedulerNotFound, ValueError.
        """
        if isinstance(service, Service):
            self._do(UpdateService(service_of(service, settings)))
            return
        key = key_of(service)
        held = self._service(key)
        kept = {"persistence_s": wire.decode_service(held).service.persistence_s}
        changed = wire.encode_changed_service(held, Service(key, **kept | settings), settings.keys())
        self._ask(Command.SET_SERVICE, "update service", str(key), changed, "service")

    def delete_service(self, key: KeyLike) -> None:
        """Remove a service and its destinations. Raises ServiceNotFound.

        Packets of their connections are dropped from now on; sysctl net.ipv4.vs.expire_nodest_conn says whether the
        connections end (1) or wait for the destination to come back (0).
        """
        self._do(DeleteService(key_of(key)))

    def add_destination(self, key: KeyLike, destination: DestinationLike, **settings: Any) -> None:
        """Add a destination: a Destination, or `address:port` and the fields of Destination as keywords.

        Raises ServiceNotFound, AlreadyExists, ValueError.
        """
        self._do(AddDestination(key_of(key), destination_of(destination, settings)))

    def update_destination(self, key: KeyLike, destination: DestinationLike, **settings: Any) -> None:
        """Change a destination. Given as address and port, what is not named stays (one request more).

        Raises ServiceNotFound, DestinationNotFound, ValueError.
        """
        key = key_of(key)
        if isinstance(destination, Destination):
            self._do(UpdateDestination(key, destination_of(destination, settings)))
        else:
            self._do(update_of(key, self._known(key, place_of(destination)), settings))

    def delete_destination(self, key: KeyLike, destination: DestinationLike) -> None:
        """Remove a destination at once: packets of its connections are dropped, as delete_service says. To drain it, set its
        weight to 0 first.

        Raises ServiceNotFound, DestinationNotFound.
        """
        self._do(DeleteDestination(key_of(key), destination_of(destination, {})))

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
            key = key_of(key)
            self._ask(Command.ZERO, "zero counters of", str(key), wire.encode_key(key))

    def flush(self) -> None:
        """Remove every service of the network namespace, whoever made it."""
        self._ask(Command.FLUSH, "remove all services")

    def daemons(self) -> list[Daemon]:
        """The synchronization daemons that run: at most one of each state."""
        parts = self._dump(Command.GET_DAEMON, "list sync daemons", lambda part: list(rows.split(part)))
        return [daemons.decode(answer) for answer in chain.from_iterable(parts)]

    def start_daemon(self, daemon: Daemon) -> None:
        """Start sending connections to other balancers (MASTER), or receiving them (BACKUP).

        Raises AlreadyExists, ValueError, IPVSError (ENODEV: no such interface).
        """
        what = f"{daemon.state} on {daemon.interface}"
        self._ask(Command.NEW_DAEMON, "start sync daemon", what, daemons.encode(daemon), "daemon")

    def stop_daemon(self, state: DaemonState | str) -> None:
        """Stop the daemon of this state, whatever its sync id. Raises DaemonNotFound when none runs, TimedOut.

        A daemon that is stopped before it ever ran is, but the kernel sends no answer (kthread_stop gives EINTR, for
        which netlink_rcv_skb sends none; Linux 6.1): then the list of daemons tells.
        """
        state = DaemonState.of(state)
        try:
            self._ask(Command.DEL_DAEMON, "stop sync daemon", str(state), daemons.encode_state(state), "daemon")
        except TimedOut:
            if any(daemon.state is state for daemon in self.daemons()):
                raise

    def _rows(self, key: ServiceKey, fields: tuple[str, ...]) -> Sequence[Row]:
        """The destinations of a service. Raises ServiceNotFound.

        A service that is not there, or that goes between two parts, ends the list without an error
        (ip_vs_genl_dump_dests looks it up for each part): then a first part that was the last looks as one that is all.
        """
        read = partial(self._reader.rows, family=key.family, fields=fields)
        found = rows.joined(parts := self._dump(Command.GET_DEST, "list destinations of", read, key, name_service(key)))
        if len(parts) != 1 or len(found) > _SURELY_WHOLE:
            self._service(key)
        return found

    def _service(self, key: ServiceKey) -> bytes:
        """The kernel's answer about one service. Raises ServiceNotFound."""
        return b"".join(self._ask(Command.GET_SERVICE, "get service", str(key), wire.encode_key(key), "service"))

    def _known(self, key: ServiceKey, place: tuple[str, int]) -> Destination:
        """The destination that the kernel has at this address and port."""
        for row in self.destinations(key):
            if row.destination.key == place:
                return row.destination
        raise error_for("update destination", errno.ENOENT, f"{endpoint(*place)} of {key}", "destination")

    def _do(self, change: Change) -> None:
        """One change: a batch of one, whose only error is raised."""
        for _, code in self._carry_out((change,))[1]:
            raise _failure(change, code).error

    def _carry_out(self, changes: Sequence[Change]) -> tuple[int, list[tuple[int, int]]]:
        """Write and send as many of these as fit: how many, and the index and errno of each that failed."""
        self._begin()
        try:
            first = self._transport.reserve(len(changes))
            count, size = self._writer.write(changes, len(changes), self._transport.family, first)
            return count, self._transport.send(self._writer.buffer[:size], first, count)
        finally:
            self._busy = False

    def _dump(
        self,
        command: Command,
        operation: str,
        read: Callable[[memoryview], T],
        key: ServiceKey | str = "",
        named: bytes = b"",
    ) -> list[T]:
        """What `read` makes of each part of a list; a part is good until the next comes."""
        self._begin()
        try:
            return [read(part) for part in self._transport.dump(command, named)]
        except KernelError as error:
            raise error_for(operation, error.errno, str(key), "table") from None
        finally:
            self._busy = False

    def _ask(
        self, command: Command, operation: str, what: str = "", attributes: bytes = b"", subject: str = "table"
    ) -> list[bytes]:
        """One exchange, with an errno turned into an error that names what was tried."""
        self._begin()
        try:
            return self._transport.exchange(command, attributes)
        except KernelError as error:
            raise error_for(operation, error.errno, what, subject) from None
        finally:
            self._busy = False

    def _begin(self) -> None:
        """A request begins; whoever calls this ends it, by `_busy` False in a `finally`."""
        self._check_owner()
        self._check_free()
        self._busy = True  # the last step: a signal's exception before it leaves the handle free

    def _check_owner(self) -> None:
        if self._owner != (get_ident(), _forks):
            raise RuntimeError("an IPVS handle belongs to the thread and process that opened it")

    def _check_free(self) -> None:
        """A signal handler runs in the middle of a verb: one of its own would take that one's buffer and answers."""
        if self._busy:
            raise RuntimeError("this IPVS handle is in the middle of a verb: open another one in a signal handler")


def _failure(change: Change, code: int) -> Failure:
    subject = "service" if isinstance(change, ON_SERVICE) else "destination"
    return Failure(change, error_for(change.operation, code, change.what, subject))


def _forked() -> None:
    global _forks  # the only state here; os.getpid would be a third system call in each request
    _forks += 1


_forks = 0  # between the first of our ancestors that imported this and us
os.register_at_fork(after_in_child=_forked)
