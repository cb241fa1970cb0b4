"""The verbs at the prompt: texts, keywords, tables, and who may use a handle."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from pyipvs import (
    IPVS,
    AddDestination,
    AddService,
    BatchError,
    Daemon,
    DaemonState,
    DeleteService,
    Destination,
    DestinationNotFound,
    IPVSError,
    ModuleMissing,
    Service,
    ServiceFlags,
    ServiceKey,
    ServiceNotFound,
    wire,
)
from pyipvs.const import Command
from pyipvs.testing import FakeKernel
from pyipvs.wire import trusted

WEB = "tcp/10.0.0.1:80"


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def ipvs(kernel: FakeKernel) -> IPVS:
    return IPVS(transport=kernel)


def test_keys_and_destinations_are_values_or_texts(ipvs: IPVS) -> None:
    ipvs.add_service(ServiceKey.parse(WEB), scheduler="rr")
    ipvs.add_destination(WEB, Destination("10.0.0.2", 80), weight=3)
    ipvs.add_destination(ServiceKey.parse(WEB), "10.0.0.3:80", weight=4)
    ipvs.update_destination(WEB, Destination("10.0.0.2", 80), weight=7)
    assert {str(row.destination): row.destination.weight for row in ipvs.destinations(WEB)} == {
        "10.0.0.2:80": 7,
        "10.0.0.3:80": 4,
    }
    ipvs.delete_destination(WEB, ("10.0.0.2", 80))
    ipvs.delete_destination(WEB, "10.0.0.3:80")
    ipvs.delete_service(WEB)


def test_lists_print_as_tables(ipvs: IPVS, kernel: FakeKernel) -> None:
    ipvs.add_service(WEB, scheduler="rr", persistence_s=60)
    ipvs.add_service("udp/[fd00::1]:53")
    ipvs.add_destination(WEB, "10.0.0.2:8080", weight=3)
    counters = {"connections": 17, "packets_in": 40, "bytes_in": 123456}
    kernel.traffic(WEB, "10.0.0.2:8080", active=5, inactive=12, **counters)
    assert repr(ipvs.services()).splitlines() == [
        "SERVICE           SCHEDULER  FLAGS           CONNS  PKTS-IN  PKTS-OUT  BYTES-IN  BYTES-OUT",
        "tcp/10.0.0.1:80   rr         persistent 60s     17       40         0    123456          0",
        "udp/[fd00::1]:53  wlc        -                   0        0         0         0          0",
    ]
    assert repr(ipvs.destinations(WEB)).splitlines() == [
        "DESTINATION    METHOD  WEIGHT  ACTIVE  INACTIVE  CONNS  BYTES-IN  BYTES-OUT",
        "10.0.0.2:8080  nat          3       5        12     17    123456          0",
    ]


def test_an_empty_list_prints_its_heading(ipvs: IPVS) -> None:
    assert repr(ipvs.services()).startswith("SERVICE  SCHEDULER")


def test_a_wrong_pair_is_refused_before_the_kernel_is_asked(ipvs: IPVS, kernel: FakeKernel) -> None:
    ipvs.add_service(WEB)
    kernel.fail_next(5)
    with pytest.raises(ValueError, match="port 8080"):
        ipvs.add_destination(WEB, "10.0.0.2:8080", method="route")
    with pytest.raises(IPVSError):
        ipvs.services()


def test_a_misspelt_setting_is_a_type_error(ipvs: IPVS) -> None:
    with pytest.raises(TypeError, match="wieght"):
        ipvs.add_destination(WEB, "10.0.0.2:80", wieght=3)


def test_errors_tell_the_whole_story(ipvs: IPVS) -> None:
    with pytest.raises(ServiceNotFound) as missing:
        ipvs.add_destination(WEB, "10.0.0.2:80")
    assert str(missing.value) == "add destination 10.0.0.2:80 to tcp/10.0.0.1:80: no such service (ESRCH)"
    ipvs.add_service(WEB)
    with pytest.raises(DestinationNotFound) as absent:
        ipvs.delete_destination(WEB, "10.0.0.2:80")
    assert str(absent.value) == ("delete destination 10.0.0.2:80 of tcp/10.0.0.1:80: no such destination (ENOENT)")


def test_a_service_that_goes_while_the_table_is_read_is_left_out(kernel: FakeKernel) -> None:
    class Disturbed:
        """Deletes a service when its destinations are asked for."""

        def __getattr__(self, name: str) -> object:
            return getattr(kernel, name)

        def dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
            if command == 8 and len(writer.services()) == 2:
                writer.delete_service("tcp/10.0.0.2:80")
            return kernel.dump(command, attributes)

    writer = IPVS(transport=kernel)
    writer.add_service(WEB)
    writer.add_service("tcp/10.0.0.2:80")
    assert [str(key) for key in IPVS(transport=Disturbed()).snapshot()] == [WEB]


VERBS: dict[str, Callable[[IPVS], object]] = {
    "add_destination": lambda ipvs: ipvs.add_destination(WEB, "10.0.0.2:80"),
    "add_service": lambda ipvs: ipvs.add_service(WEB),
    "apply": lambda ipvs: ipvs.apply([]),
    "batch": lambda ipvs: ipvs.batch().__exit__(None, None, None),
    "daemons": IPVS.daemons,
    "delete_destination": lambda ipvs: ipvs.delete_destination(WEB, "10.0.0.2:80"),
    "delete_service": lambda ipvs: ipvs.delete_service(WEB),
    "destinations": lambda ipvs: ipvs.destinations(WEB),
    "flush": IPVS.flush,
    "info": IPVS.info,
    "scan": lambda ipvs: next(ipvs.scan()),
    "service": lambda ipvs: ipvs.service(WEB),
    "services": IPVS.services,
    "set_timeouts": lambda ipvs: ipvs.set_timeouts(900),
    "snapshot": IPVS.snapshot,
    "start_daemon": lambda ipvs: ipvs.start_daemon(Daemon(DaemonState.MASTER, "lo")),
    "stop_daemon": lambda ipvs: ipvs.stop_daemon("master"),
    "timeouts": IPVS.timeouts,
    "update_destination": lambda ipvs: ipvs.update_destination(WEB, "10.0.0.2:80", weight=2),
    "update_service": lambda ipvs: ipvs.update_service(WEB, scheduler="rr"),
    "watch": lambda ipvs: next(ipvs.watch()),
    "zero": IPVS.zero,
}


def refusing(ipvs: IPVS) -> set[str]:
    """The verbs that say whose the handle is."""
    found = set()
    for name, use in VERBS.items():
        try:
            use(ipvs)
        except RuntimeError as error:
            if "belongs to the thread and process" in str(error):
                found.add(name)
    return found


def test_every_verb_is_in_the_table_of_verbs() -> None:
    assert {name for name, verb in vars(IPVS).items() if callable(verb) and name[0] != "_"} == VERBS.keys() | {"close"}


def test_every_verb_refuses_another_thread(ipvs: IPVS) -> None:
    caught: set[str] = set()
    thread = threading.Thread(target=lambda: caught.update(refusing(ipvs)))
    thread.start()
    thread.join(timeout=10)
    assert caught == VERBS.keys()
    assert ipvs.services() == []


def test_every_verb_refuses_a_forked_process(ipvs: IPVS) -> None:
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if refusing(ipvs) == VERBS.keys() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ipvs.services() == []


def test_a_handle_closes_its_transport_at_the_end_of_the_block() -> None:
    class Counting(FakeKernel):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    transport = Counting()
    with IPVS(transport=transport) as ipvs:
        assert repr(ipvs) == "<IPVS of this network namespace by Counting>"
    assert transport.closed == 1


class Interrupted(FakeKernel):
    """Runs `handler` in the middle of each request, as a signal does."""

    def __init__(self, handler: Callable[[], object]) -> None:
        super().__init__()
        self.handler = handler

    def exchange(self, command: int, attributes: bytes) -> list[bytes]:
        self.handler()
        return super().exchange(command, attributes)

    def dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
        self.handler()
        return super().dump(command, attributes)


def test_a_verb_in_the_middle_of_a_verb_is_refused_and_disturbs_nothing() -> None:
    """A signal handler that used the buffer or the answers of the verb that it interrupts would change the table wrongly."""
    refused: set[str] = set()

    def handler() -> None:
        for name, use in (VERBS | {"close": IPVS.close}).items():
            if name not in ("apply", "batch"):  # of nothing
                try:
                    use(ipvs)
                except RuntimeError as error:
                    assert "in the middle of a verb" in str(error)
                    refused.add(name)

    kernel = Interrupted(handler)
    ipvs = IPVS(transport=kernel)
    for use in (VERBS["add_service"], VERBS["services"], VERBS["service"]):
        refused.clear()
        use(ipvs)
        assert refused == VERBS.keys() - {"apply", "batch"} | {"close"}
    kernel.handler = lambda: None
    assert [str(status.service.key) for status in ipvs.services()] == [WEB]


def test_an_exception_in_the_middle_of_a_verb_leaves_the_handle_free() -> None:
    def handler() -> None:
        raise KeyboardInterrupt

    kernel = Interrupted(lambda: None)
    ipvs = IPVS(transport=kernel)
    for use in (VERBS["add_service"], VERBS["services"], VERBS["info"]):
        kernel.handler = handler
        with pytest.raises(KeyboardInterrupt):
            use(ipvs)
        kernel.handler = lambda: None
        assert ipvs.services() == []


def test_between_the_steps_of_a_reader_the_handle_is_free(ipvs: IPVS) -> None:
    for number in (1, 2, 3):
        ipvs.add_service(f"tcp/10.0.0.{number}:80")
    for entry in ipvs.scan():
        ipvs.add_destination(entry.service.key, "10.0.0.9:80")
    for sample in ipvs.watch(0.001):
        assert {len(entry) for entry in sample.table.values()} == {1}
        ipvs.delete_service(WEB)
        break
    seen: list[int] = []
    ipvs.apply([AddService(Service(ServiceKey.parse(WEB)))], lambda _done, _all: seen.append(len(ipvs.services())))
    assert seen == [3]


def test_a_service_that_goes_between_two_parts_of_its_destinations_is_not_found(kernel: FakeKernel) -> None:
    class InParts(FakeKernel):
        """Gives its destinations in two parts, and `between` them does something."""

        between: Callable[[], object] = staticmethod(lambda: None)

        def dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
            for part in super().dump(command, attributes):
                if command == Command.GET_DEST:
                    half = len(part) // 2
                    yield part[:half]
                    self.between()
                    yield part[half:]
                else:
                    yield part

    kernel = InParts()
    ipvs, other = IPVS(transport=kernel), IPVS(transport=kernel)
    ipvs.add_service(WEB)
    ipvs.add_destination(WEB, "10.0.0.2:80")
    ipvs.add_destination(WEB, "10.0.0.3:80")
    assert len(ipvs.destinations(WEB)) == 2
    kernel.between = lambda: other.delete_service(WEB)
    with pytest.raises(ServiceNotFound):
        ipvs.destinations(WEB)
    ipvs.add_service(WEB)
    ipvs.add_destination(WEB, "10.0.0.2:80")
    ipvs.add_destination(WEB, "10.0.0.3:80")
    assert len(ipvs.snapshot()) == 0


@pytest.mark.parametrize(("count", "more"), [(0, 1), (1, 0), (40, 0), (41, 1)])
def test_a_list_that_may_have_ended_early_takes_a_second_request(count: int, more: int) -> None:
    """A service that goes after the first message of its destinations leaves one message, which looks as if it were all."""

    class Asked(FakeKernel):
        commands: list[int]

        def exchange(self, command: int, attributes: bytes) -> list[bytes]:
            self.commands.append(command)
            return super().exchange(command, attributes)

    kernel = Asked()
    ipvs, kernel.commands = IPVS(transport=kernel), []
    with ipvs.batch() as batch:
        batch.add_service(WEB)
        for port in range(count):
            batch.add_destination(WEB, f"10.0.0.2:{port}")
    kernel.commands = []
    assert len(ipvs.destinations(WEB)) == count
    assert kernel.commands == [Command.GET_SERVICE] * more


def test_an_update_writes_only_what_is_named_whatever_another_program_made(ipvs: IPVS, kernel: FakeKernel) -> None:
    key = ServiceKey.parse(WEB)
    odd = {"scheduler": "rr", "flags": (0x1, 0xFFFFFFFF), "persistence_s": 0, "netmask": 0x00FF00FF}
    attributes = wire.pack(wire.COMMAND, {"service": wire.pack(wire.SERVICE, wire.key_values(key) | odd)})
    kernel.exchange(Command.NEW_SERVICE, attributes)
    ipvs.update_service(WEB, scheduler="wrr", flags=8)
    values = wire.unpack(wire.SERVICE, wire.nested(kernel.exchange(Command.GET_SERVICE, wire.encode_key(key))[0], "service"))
    assert (values["scheduler"], values["flags"][0] & 0x3D, values["netmask"]) == ("wrr", 9, 0x00FF00FF)
    ipvs.update_service(WEB, persistence_s=60)
    ipvs.update_service(WEB, netmask=24, persistence_engine="sip")
    assert ipvs.service(WEB).service == Service(key, "wrr", ServiceFlags.SCHED1, 60, 24, "sip")
    with pytest.raises(ValueError, match="netmask"):
        ipvs.update_service(WEB, netmask=33)


def test_a_destination_that_we_would_not_make_can_be_drained(ipvs: IPVS, kernel: FakeKernel) -> None:
    ipvs.add_service(WEB)
    odd = trusted(AddDestination, ServiceKey.parse(WEB), Destination("10.0.0.2", 81, 5, "route", 9, 3))
    ipvs.apply([odd])
    ipvs.update_destination(WEB, ("10.0.0.2", 81), weight=0)
    (row,) = ipvs.destinations(WEB)
    assert row.destination == Destination("10.0.0.2", 81, 0, "route", 9, 3)
    with pytest.raises(ValueError, match="lower_threshold"):
        ipvs.update_destination(WEB, "10.0.0.2:81", upper_threshold=2)
    with pytest.raises(ValueError, match="port 81"):
        ipvs.update_destination(WEB, "10.0.0.2:81", method="route")


def test_a_batch_takes_destinations_as_a_handle_does(ipvs: IPVS) -> None:
    ipvs.add_service(WEB)
    with ipvs.batch() as batch:
        batch.add_destination(WEB, ("10.0.0.2", 80), weight=2)
    assert len(ipvs.destinations(WEB)) == 1
    with ipvs.batch() as batch:
        batch.delete_destination(WEB, ("10.0.0.2", 80))
    assert ipvs.destinations(WEB) == []


def test_when_the_module_goes_amid_a_batch_every_failure_is_told() -> None:
    class Going(FakeKernel):
        room, parts = 1, 0

        def send(self, batch: memoryview, first: int, count: int) -> list[tuple[int, int]]:
            self.parts += 1
            if self.parts > 1:
                raise ModuleMissing("open", errno.ENOENT, "IPVS")
            return super().send(batch, first, count)

    with pytest.raises(BatchError) as caught:
        IPVS(transport=Going()).apply([DeleteService(ServiceKey.fwmark(number)) for number in (1, 2, 3)])
    kinds = [type(failure.error) for failure in caught.value.failures]
    assert kinds == [ServiceNotFound, ModuleMissing, ModuleMissing]
