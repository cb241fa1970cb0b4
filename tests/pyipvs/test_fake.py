"""The fake kernel passes what the real one passes, and does what only a fake can: fail and pretend."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyipvs import IPVS, IPVSError, PermissionDenied, SchedulerNotFound, Stats, TimedOut
from pyipvs.const import Command
from pyipvs.errors import KernelError
from pyipvs.testing import FakeKernel
from tests.pyipvs.conformance import *  # noqa: F403 - the tests of the contract

WEB = "tcp/10.0.0.1:80"


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def ipvs(kernel: FakeKernel) -> IPVS:
    return IPVS(transport=kernel)


def test_faults_come_in_order_and_change_nothing(ipvs: IPVS, kernel: FakeKernel) -> None:
    kernel.fail_next(errno.EPERM, errno.ENOMEM, errno.ETIMEDOUT)
    with pytest.raises(PermissionDenied, match="CAP_NET_ADMIN"):
        ipvs.add_service(WEB)
    with pytest.raises(IPVSError, match="ENOMEM"):
        ipvs.services()
    with pytest.raises(TimedOut):
        ipvs.info()
    assert ipvs.services() == []


def test_only_the_schedulers_given_are_there() -> None:
    ipvs = IPVS(transport=FakeKernel(schedulers=("rr",)))
    ipvs.add_service(WEB, scheduler="rr")
    with pytest.raises(SchedulerNotFound):
        ipvs.update_service(WEB, scheduler="wlc")


def test_several_handles_share_one_table(kernel: FakeKernel) -> None:
    IPVS(transport=kernel).add_service(WEB)
    with IPVS(transport=kernel) as other:
        assert len(other.services()) == 1
    assert len(IPVS(transport=kernel).services()) == 1


def test_pretended_traffic_counts_for_the_destination_and_its_service_until_zeroed(
    ipvs: IPVS, kernel: FakeKernel
) -> None:
    ipvs.add_service(WEB)
    ipvs.add_destination(WEB, "10.0.0.2:80")
    ipvs.add_destination(WEB, "10.0.0.3:80")
    kernel.traffic(WEB, "10.0.0.2:80", active=2, connections=5, packets_in=2**33)
    kernel.traffic(WEB, "10.0.0.3:80", connections=1)
    assert ipvs.service(WEB).stats == Stats(connections=6, packets_in=2**33)
    second, first = ipvs.destinations(WEB)
    assert (first.active, first.stats) == (2, Stats(connections=5, packets_in=2**33))
    assert (second.active, second.stats) == (0, Stats(connections=1))
    ipvs.zero(WEB)
    assert ipvs.service(WEB).stats == ipvs.destinations(WEB)[1].stats == Stats()
    kernel.traffic(WEB, "10.0.0.2:80", connections=1)
    ipvs.zero()
    assert ipvs.service(WEB).stats == Stats()


def test_an_unknown_command_is_refused(kernel: FakeKernel) -> None:
    for ask in (kernel.exchange, lambda *words: list(kernel.dump(*words))):
        with pytest.raises(KernelError) as caught:
            ask(99, b"")
        assert caught.value.errno == errno.EOPNOTSUPP


@given(st.sampled_from(Command), st.binary(max_size=100), st.booleans())
def test_any_request_gets_answers_or_an_errno(command: Command, attributes: bytes, dump: bool) -> None:
    try:
        kernel = FakeKernel()
        answers = list(kernel.dump(command, attributes)) if dump else kernel.exchange(command, attributes)
    except KernelError as error:
        assert error.errno > 0
    else:
        assert all(isinstance(answer, bytes | memoryview) for answer in answers)
