"""The contract of IPVS on the real kernel, and what only a real kernel can show."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from fusisd.kernel.ipvs import IpvsKernel
from fusisd.limits import kernel_service
from pyipvs import (
    IPVS,
    Destination,
    IPVSError,
    PermissionDenied,
    Ruleset,
    Service,
    ServiceKey,
    ServiceNotFound,
    diff,
)
from pyipvs.const import Command
from pyipvs.writer import name_service
from tests.fusisd.limits import Asked, asked, carry_out, taken
from tests.lab.netns import unshare_network
from tests.lab.topology import Host
from tests.pyipvs.conformance import *  # noqa: F403 - the tests of the contract
from tests.pyipvs.conformance import DESTINATIONS, SERVICES, WEB


def test_ipvsadm_saves_the_table_that_was_made(ipvs: IPVS, netns: Host) -> None:
    for service in SERVICES:
        ipvs.add_service(service)
    for key, destination in DESTINATIONS:
        ipvs.add_destination(key, destination)
    assert sorted(netns.run("ipvsadm", "-Sn").splitlines()) == [
        "-A --sctp-service 10.0.0.1:9 -s wrr",
        "-A -f 7 -s mh",
        "-A -f 8 -6 -s rr",
        "-A -t 10.0.0.1:80 -s rr",
        "-A -t 10.0.0.2:0 -s lc -p 300 -M 255.255.255.0",
        "-A -t [fd00::1]:443 -s sh -b sh-fallback,sh-port",
        "-A -t [fd00::2]:25 -s lc -p 60 -M 64",
        "-A -u 10.0.0.1:53 -s wlc -o",
        "-a -t 10.0.0.1:80 -r 10.0.0.11:80 -g -w 0",
        "-a -t 10.0.0.1:80 -r 10.0.0.11:8080 -m -w 3",
        "-a -t 10.0.0.1:80 -r 10.0.0.12:80 -i -w 1 --tun-type ipip",
        "-a -t 10.0.0.1:80 -r 10.0.0.13:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum",
        "-a -t 10.0.0.1:80 -r 10.0.0.14:80 -i -w 1 --tun-type gre --tun-nocsum",
        "-a -t 10.0.0.1:80 -r 10.0.0.15:80 -m -w 1",
        "-a -t [fd00::1]:443 -r 10.0.0.11:443 -i -w 1 --tun-type ipip",
        "-a -t [fd00::1]:443 -r [fd00::11]:443 -g -w 1",
    ]


def test_what_ipvsadm_made_is_read(ipvs: IPVS, netns: Host) -> None:
    netns.run("ipvsadm", "-A", "-u", "[fd00::1]:53", "-s", "sh", "-b", "sh-fallback", "-o")
    netns.run("ipvsadm", "-a", "-u", "[fd00::1]:53", "-r", "[fd00::2]:5353", "-m", "-x", "9", "-y", "5")
    (status,) = ipvs.services()
    assert str(status.service.key) == "udp/[fd00::1]:53"
    assert [flag.name for flag in status.service.flags] == ["ONE_PACKET", "SCHED1"]
    (row,) = ipvs.destinations(status.service.key)
    assert (row.destination.upper_threshold, row.destination.lower_threshold) == (9, 5)


def test_a_namespace_may_be_given_by_path_or_as_an_open_file(ipvs: IPVS, netns: Host) -> None:
    ipvs.add_service("tcp/10.0.0.1:80")
    path = Path("/run/netns", netns.name)
    with path.open() as file:
        for given in (str(path), path, file.fileno()):
            with IPVS(netns=given) as other:
                assert len(other.services()) == 1


def test_in_a_namespace_without_any_address_the_error_says_what_is_missing() -> None:
    child = os.fork()
    if child == 0:
        unshare_network()
        with IPVS() as ipvs:
            ipvs.add_service("tcp/10.0.0.1:80")
            try:
                ipvs.add_destination("tcp/10.0.0.1:80", "10.0.0.2:80")
            except IPVSError as error:
                os._exit(0 if error.errno == errno.EINVAL and "lo must be up" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_dump_that_was_left_does_not_hinder_the_next(ipvs: IPVS) -> None:
    ipvs.add_service("tcp/10.0.0.1:80")
    with ipvs.batch() as batch:
        for number in range(1000):
            batch.add_destination("tcp/10.0.0.1:80", f"10.1.{number // 250}.{number % 250 + 1}:80")
    key = ServiceKey.parse("tcp/10.0.0.1:80")
    left = ipvs._transport.dump(Command.GET_DEST, name_service(key))
    next(left)
    left.close()
    assert len(ipvs.destinations(key)) == 1000
    assert len(ipvs.services()) == 1


@pytest.mark.guest_only  # it unloads kernel modules
def test_a_handle_survives_the_module_being_unloaded_and_loaded_again(ipvs: IPVS, netns: Host) -> None:
    ipvs.add_service("tcp/10.0.0.1:80", scheduler="rr")
    ipvs.flush()
    loaded = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
    ours = [name for name in loaded if name.startswith("ip_vs")]
    subprocess.run(["modprobe", "-r", *ours], check=True, timeout=60)
    with IPVS(netns=netns.name) as fresh:  # loads it again
        assert fresh.info().version == "1.2.1"
    ipvs.add_service("tcp/10.0.0.1:80", scheduler="rr")
    assert len(ipvs.services()) == 1


def test_a_handle_stays_in_the_namespace_it_was_opened_in(ipvs: IPVS, netns: Host) -> None:
    ipvs.add_service("tcp/10.0.0.1:80")
    with IPVS() as here:
        assert here.services() == []


def test_opening_and_closing_a_thousand_handles_leaks_nothing(netns: Host) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        IPVS(netns=netns.name).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_the_capability_the_error_says_what_is_needed(netns: Host) -> None:
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            IPVS().services()
        except PermissionDenied as error:
            os._exit(0 if error.errno == errno.EPERM and "CAP_NET_ADMIN" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_handle_refuses_to_work_after_a_fork(ipvs: IPVS) -> None:
    child = os.fork()
    if child == 0:
        try:
            ipvs.services()
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(ValueError, match="closed"):
        ipvs.close()
        ipvs.services()


def test_a_forked_process_closes_its_copy_and_opens_its_own_and_the_parents_goes_on(ipvs: IPVS, netns: Host) -> None:
    ipvs.add_service("tcp/10.0.0.1:80")
    child = os.fork()
    if child == 0:
        try:
            ipvs.close()
            with IPVS(netns=netns.name) as own:
                own.add_service("tcp/10.0.0.2:80")
                os._exit(0 if len(own.services()) == 2 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ipvs.add_service("tcp/10.0.0.3:80")
    assert len(ipvs.services()) == 3


def test_a_service_that_goes_after_the_first_message_of_its_destinations_is_not_found(ipvs: IPVS, netns: Host) -> None:
    """Between our send, in which the kernel fills one message, and our receive, in which it fills the next."""
    hosts = [Destination(f"10.0.{number // 250}.{number % 250 + 1}", 80) for number in range(300)]
    ipvs.apply(diff(Ruleset(), Ruleset([(Service(ServiceKey.parse(WEB), "rr"), hosts)])))
    buffers = ipvs._transport._buffers
    receive = buffers.receive

    def late(receiver: socket.socket) -> list[memoryview]:
        buffers.receive = receive
        other.delete_service(WEB)
        return receive(receiver)

    with IPVS(netns=netns.name) as other:
        buffers.receive = late
        with pytest.raises(ServiceNotFound):
            ipvs.destinations(WEB)


@settings(max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked())
def test_what_the_door_of_fusisd_takes_this_kernel_takes(ipvs: IPVS, pair: Asked) -> None:
    made = taken(*pair)
    if made is not None and not IpvsKernel(ipvs, None).can_load(kernel_service(made[0])):  # the door asks that, too
        carry_out(ipvs, *made)
