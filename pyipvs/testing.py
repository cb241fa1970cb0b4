"""FakeKernel: an IPVS table in memory, at the byte seam, for tests and trials without a kernel or privileges.

It answers what Linux 6.1 answers: its checks stand in the order of ip_vs_genl_set_cmd in ip_vs_ctl.c, each
was measured on a real kernel, and tests/pyipvs/conformance.py runs on both alike. No packet flows: counters
move by `traffic` only.
Does not: imitate sync daemons, the routing tables, other network namespaces or time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pyipvs import wire
from pyipvs.const import Command, SvcFlag
from pyipvs.errors import DecodeError, KernelError
from pyipvs.framing import ANSWER_HEADER, NLMSGHDR, messages, request
from pyipvs.model import Family, ForwardingMethod, ServiceKey, Stats, TunnelType, split_endpoint
from pyipvs.wire import Values

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos")

_FULL_SERVICE = ("scheduler", "flags", "persistence_s", "netmask")
_FULL_DESTINATION = ("method", "weight", "upper_threshold", "lower_threshold")
_NO_TUNNEL = {"tunnel_type": TunnelType.IPIP, "tunnel_port": 0, "tunnel_flags": 0}
_INFO = {"version": 0x010201, "connection_table_size": 4096}
_ALL = 0xFFFFFFFF
_Answers = list[bytes]


@dataclass(slots=True)
class _Entry:
    """A destination; its values are those of wire.DESTINATION."""

    values: Values
    stats: Stats = Stats()


@dataclass(slots=True)
class _FakeService:
    """A service; its values are those of wire.SERVICE, its destinations stand oldest first."""

    values: Values
    stats: Stats = Stats()
    destinations: dict[tuple[bytes, int], _Entry] = field(default_factory=dict)


class FakeKernel:
    """A transport for `IPVS(transport=FakeKernel())`. Several handles may share one: it is the table."""

    family, room, longest = 0x1C, 1000, 1 << 20

    def __init__(
        self, schedulers: Iterable[str] = SCHEDULERS, persistence_engines: Iterable[str] = ("sip",)
    ) -> None:
        """`schedulers` and `persistence_engines` can be loaded; any other name gives ENOENT."""
        self._schedulers, self._engines = {*schedulers, "none"}, set(persistence_engines)
        self._services: dict[ServiceKey, _FakeService] = {}
        self._timeouts = {"tcp_s": 900, "tcp_fin_s": 120, "udp_s": 300}
        self._faults: list[int] = []
        self._on_table: dict[int, Callable[[Values], _Answers]] = {
            Command.SET_CONFIG: self._set_config,
            Command.GET_CONFIG: lambda _: [wire.pack(wire.COMMAND, self._timeouts)],
            Command.GET_INFO: lambda _: [wire.pack(wire.INFO, _INFO)],
            Command.FLUSH: self._flush,
        }
        self._on_service: dict[int, Callable[[ServiceKey, Values], _Answers]] = {
            Command.NEW_SERVICE: self._new_service,
            Command.SET_SERVICE: self._set_service,
            Command.DEL_SERVICE: self._delete_service,
            Command.GET_SERVICE: lambda key, _: [_service_answer(self._find(key))],
            Command.ZERO: lambda key, _: _zero(self._find(key)),
        }
        self._on_destination = {
            Command.NEW_DEST: _new_destination,
            Command.SET_DEST: _set_destination,
            Command.DEL_DEST: _delete_destination,
        }

    def fail_next(self, *errnos: int) -> None:
        """The next requests fail with these errnos, one each, and change nothing."""
        self._faults.extend(errnos)

    def traffic(
        self, key: str, destination: str, active: int = 0, inactive: int = 0, **counters: int
    ) -> None:
        """Pretend traffic: set a destination's connections, add `counters` (fields of Stats) to its and its
        service's. Raises KeyError when one is not there."""
        service = self._services[ServiceKey.parse(key)]
        address, port = split_endpoint(destination)
        entry = service.destinations[_place(wire.destination_key(address, port))]
        entry.values |= {"active": active, "inactive": inactive}
        for holder in (entry, service):
            before = holder.stats._asdict()
            holder.stats = Stats(**before | {name: before[name] + value for name, value in counters.items()})

    def reserve(self, count: int) -> int:
        """See pyipvs.netlink.Transport."""
        return 1

    def exchange(self, command: int, attributes: bytes) -> _Answers:
        """See pyipvs.netlink.Transport."""
        return self._answered(self._do, command, attributes)

    def dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
        """See pyipvs.netlink.Transport."""
        answers = self._answered(self._dump, command, attributes)
        if answers:
            yield memoryview(b"".join(request(command, answer, 0, self.family, 1, 0) for answer in answers))

    def send(self, batch: memoryview, first: int, count: int) -> list[tuple[int, int]]:
        """See pyipvs.netlink.Transport."""
        failed = []
        for index, message in enumerate(messages(batch)):
            try:
                command = batch[message.at + NLMSGHDR.size]
                self.exchange(command, bytes(batch[message.at + ANSWER_HEADER : message.end]))
            except KernelError as error:
                failed.append((index, error.errno))
        return failed

    def _answered(self, handle: Callable[[int, Values], _Answers], command: int, attributes: bytes) -> _Answers:
        if self._faults:
            raise KernelError(self._faults.pop(0))
        try:
            return handle(command, wire.unpack(wire.COMMAND, attributes))
        except DecodeError:
            raise KernelError(errno.EINVAL) from None

    def close(self) -> None:
        """Nothing to give up: the table stays."""

    def _dump(self, command: int, values: Values) -> _Answers:
        if command == Command.GET_SERVICE:
            return [_service_answer(service) for service in self._services.values()]
        if command != Command.GET_DEST:
            raise KernelError(errno.EOPNOTSUPP)
        if "service" not in values:
            return []
        service = self._services.get(_service_key(wire.unpack(wire.SERVICE, values["service"])))
        if service is None:  # an empty success, as from the kernel
            return []
        return [_destination_answer(entry) for entry in reversed(service.destinations.values())]

    def _do(self, command: int, values: Values) -> _Answers:
        if command in self._on_table:
            return self._on_table[command](values)
        if command == Command.ZERO and "service" not in values:
            return [answer for service in self._services.values() for answer in _zero(service)]
        if command not in self._on_service and command not in self._on_destination:
            raise KernelError(errno.EOPNOTSUPP)
        wanted = wire.unpack(wire.SERVICE, values.get("service", b""))
        key = _service_key(wanted)
        if command in self._on_service:
            return self._on_service[command](key, wanted)
        service = self._find(key)
        destination = wire.unpack(wire.DESTINATION, values.get("destination", b""))
        return self._on_destination[Command(command)](service, destination)

    def _find(self, key: ServiceKey) -> _FakeService:
        try:
            return self._services[key]
        except KeyError:
            raise KernelError(errno.ESRCH) from None

    def _new_service(self, key: ServiceKey, wanted: Values) -> _Answers:
        _demand(wanted, _FULL_SERVICE)
        if key in self._services:
            raise KernelError(errno.EEXIST)
        self._services[key] = _FakeService(self._configured(wanted, 0))
        return []

    def _set_service(self, key: ServiceKey, wanted: Values) -> _Answers:
        _demand(wanted, _FULL_SERVICE)
        service = self._find(key)
        service.values = self._configured(wanted, service.values["flags"][0])
        return []

    def _configured(self, wanted: Values, flags_before: int) -> Values:
        """What the kernel would hold (ip_vs_genl_parse_service, ip_vs_add_service, ip_vs_edit_service)."""
        engine = wanted.get("persistence_engine")
        if len(wanted["scheduler"]) > 15:
            raise KernelError(errno.EINVAL)
        if wanted["scheduler"] not in self._schedulers or (engine and engine not in self._engines):
            raise KernelError(errno.ENOENT)
        if wanted["family"] == Family.INET6 and not 1 <= wanted["netmask"] <= 128:
            raise KernelError(errno.EINVAL)
        flags, mask = wanted["flags"]
        return wanted | {"flags": (flags_before & ~mask | flags & mask | SvcFlag.HASHED, _ALL)}

    def _delete_service(self, key: ServiceKey, _: Values) -> _Answers:
        self._find(key)
        del self._services[key]
        return []

    def _set_config(self, values: Values) -> _Answers:
        self._timeouts.update({name: values[name] for name in self._timeouts if values.get(name)})
        return []

    def _flush(self, _: Values) -> _Answers:
        self._services.clear()
        return []


def _demand(values: Values, fields: Iterable[str]) -> None:
    if any(name not in values for name in fields):
        raise KernelError(errno.EINVAL)


def _service_key(values: Values) -> ServiceKey:
    _demand(values, ("family",))
    if values["family"] not in tuple(Family):
        raise KernelError(errno.EAFNOSUPPORT)
    return wire.service_key(values)


def _place(values: Values) -> tuple[bytes, int]:
    """What tells a destination apart within its service."""
    _demand(values, ("address", "port"))
    return values["address"].ljust(16, b"\0"), values["port"]


def _new_destination(service: _FakeService, wanted: Values) -> _Answers:
    configured = _checked(service, wanted)
    if (place := _place(wanted)) in service.destinations:
        raise KernelError(errno.EEXIST)
    if not _is_host(configured):
        raise KernelError(errno.EINVAL)
    service.destinations[place] = _Entry(configured | {"active": 0, "inactive": 0, "persistent": 0})
    return []


def _set_destination(service: _FakeService, wanted: Values) -> _Answers:
    configured = _checked(service, wanted)
    if (entry := service.destinations.get(_place(wanted))) is None:
        raise KernelError(errno.ENOENT)
    entry.values |= configured
    return []


def _delete_destination(service: _FakeService, wanted: Values) -> _Answers:
    if service.destinations.pop(_place(wanted), None) is None:
        raise KernelError(errno.ENOENT)
    return []


def _checked(service: _FakeService, wanted: Values) -> Values:
    """The whole configuration: a tunnel left out is ipip (ip_vs_genl_parse_dest, ip_vs_add_dest)."""
    _place(wanted)
    _demand(wanted, _FULL_DESTINATION)
    values = {"family": service.values["family"]} | _NO_TUNNEL | wanted
    tunnelled = values["method"] == ForwardingMethod.TUNNEL
    if values["family"] != service.values["family"] and not tunnelled:
        raise KernelError(errno.EINVAL)
    if values["weight"] < 0 or values["lower_threshold"] > values["upper_threshold"]:
        raise KernelError(errno.ERANGE)
    if values["tunnel_type"] == TunnelType.GUE and not values["tunnel_port"]:
        raise KernelError(errno.EINVAL)
    return values


def _is_host(values: Values) -> bool:
    """ip_vs_new_dest asks the routing tables; this knows only addresses that are never a host's."""
    packed: bytes = values["address"]
    if values["family"] == Family.INET6:
        return any(packed) and packed[0] != 0xFF and packed[:2] != b"\xfe\x80"
    return any(packed[:4]) and not 224 <= packed[0] < 240 and packed[:4] != b"\xff" * 4


def _zero(service: _FakeService) -> _Answers:
    service.stats = Stats()
    for entry in service.destinations.values():
        entry.stats = Stats()
    return []


def _service_answer(service: _FakeService) -> bytes:
    values = service.values | _counted(service.stats)
    return wire.pack(wire.COMMAND, {"service": wire.pack(wire.SERVICE, values)})


def _destination_answer(entry: _Entry) -> bytes:
    values = entry.values | _counted(entry.stats)
    return wire.pack(wire.COMMAND, {"destination": wire.pack(wire.DESTINATION, values)})


def _counted(stats: Stats) -> Values:
    """Both attributes of the kernel: the older one has 32 bits but for bytes."""
    wide = stats._asdict()
    narrow = {name: value & _ALL for name, value in wide.items()}
    narrow |= {"bytes_in": stats.bytes_in, "bytes_out": stats.bytes_out}
    return {"stats": wire.pack(wire.STATS, narrow), "stats64": wire.pack(wire.STATS64, wide)}
