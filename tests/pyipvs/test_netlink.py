"""The socket: against a real family that every Linux answers without privileges (nlctrl), and bad bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyipvs import DecodeError, IPVSError, ModuleMissing, _libnl, framing, netlink, netns, rows
from pyipvs.errors import KernelError
from pyipvs.netlink import NetlinkTransport
from tests.lab.netns import unshare_network

CTRL_CMD_GETFAMILY = 3  # <linux/genetlink.h>
CTRL_ATTR_FAMILY_NAME = 2


def _name(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("=HH", len(data) + 4, CTRL_ATTR_FAMILY_NAME) + data + bytes(-len(data) % 4)


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch):
    """A socket for generic netlink's own family instead of IPVS."""
    monkeypatch.setattr(netlink, "GENL_NAME", "nlctrl")
    opened = NetlinkTransport(timeout_s=2.0)
    yield opened
    opened.close()


@pytest.fixture
def silent(transport: NetlinkTransport):
    """The same, but its answers come from our end of a socket pair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    real, transport._socket = transport._socket, theirs
    yield transport, ours
    transport._socket = real
    ours.close()
    theirs.close()


def dumped(transport: NetlinkTransport) -> list[bytes]:
    return [answer for part in transport.dump(CTRL_CMD_GETFAMILY, b"") for answer in rows.split(part)]


def _answer(kind: int, sequence: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, sequence, 0) + payload


def _done(sequence: int, code: int = 0) -> bytes:
    return _answer(framing.NLMSG_DONE, sequence, struct.pack("=i", code))


def test_one_answer_and_its_acknowledgement(transport: NetlinkTransport) -> None:
    (answer,) = transport.exchange(CTRL_CMD_GETFAMILY, _name("nlctrl"))
    assert b"nlctrl\0" in answer


def test_a_dump_is_read_to_its_end_and_the_next_request_is_its_own(transport: NetlinkTransport) -> None:
    families = dumped(transport)
    assert any(b"nlctrl\0" in family for family in families)
    assert len(transport.exchange(CTRL_CMD_GETFAMILY, _name("nlctrl"))) == 1


def test_the_kernels_errno_is_kept(transport: NetlinkTransport) -> None:
    with pytest.raises(KernelError) as caught:
        transport.exchange(CTRL_CMD_GETFAMILY, _name("nosuchfamily"))
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(KernelError) as caught:
        transport.exchange(99, b"")
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_family_under_a_new_number_is_found_again(transport: NetlinkTransport) -> None:
    transport._family = 0xFFF0  # as after the module was unloaded and loaded again
    assert len(transport.exchange(CTRL_CMD_GETFAMILY, _name("nlctrl"))) == 1


def test_answers_to_earlier_requests_are_skipped(silent: tuple[NetlinkTransport, socket.socket]) -> None:
    transport, kernel = silent
    family, sequence = transport._family, transport._sequence + 1
    kernel.send(_answer(family, sequence - 1, b"\0\0\0\0old!") + _answer(family, sequence, b"\0\0\0\0new!"))
    kernel.send(_done(sequence))
    assert dumped(transport) == [b"new!"]


def test_an_error_at_the_end_of_a_dump_is_raised(silent: tuple[NetlinkTransport, socket.socket]) -> None:
    transport, kernel = silent
    kernel.send(_done(transport._sequence + 1, -errno.ENOMEM))
    with pytest.raises(KernelError) as caught:
        dumped(transport)
    assert caught.value.errno == errno.ENOMEM


def test_a_truncated_answer_is_an_error(silent: tuple[NetlinkTransport, socket.socket]) -> None:
    transport, kernel = silent
    kernel.send(bytes(40000))
    with pytest.raises(KernelError) as caught:
        transport.exchange(CTRL_CMD_GETFAMILY, b"")
    assert caught.value.errno == errno.EMSGSIZE


def test_no_answer_is_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "GENL_NAME", "nlctrl")
    monkeypatch.setattr(netlink, "NLM_F_REQUEST", 0)  # the kernel ignores what is no request
    monkeypatch.setattr(netlink, "NLM_F_ACK", 0)
    transport = NetlinkTransport(timeout_s=0.05)
    began = time.monotonic()
    with contextlib.closing(transport), pytest.raises(KernelError) as caught:
        transport.exchange(CTRL_CMD_GETFAMILY, _name("nlctrl"))
    assert caught.value.errno == errno.ETIMEDOUT
    assert 0.04 < time.monotonic() - began < 5


@pytest.mark.parametrize("ask", [dumped, lambda transport: transport.exchange(CTRL_CMD_GETFAMILY, b"")])
def test_answers_of_others_that_never_end_are_a_time_out(
    silent: tuple[NetlinkTransport, socket.socket], ask: Callable[[NetlinkTransport], object]
) -> None:
    transport, kernel = silent
    transport._timeout_s = 0.0
    for _ in range(20):
        kernel.send(_answer(transport._family, transport._sequence, b"\0\0\0\0more"))
    with pytest.raises(KernelError) as caught:
        ask(transport)
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_default_timeout_of_the_program_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "GENL_NAME", "nlctrl")
    socket.setdefaulttimeout(0.0)
    try:
        transport = NetlinkTransport()
    finally:
        socket.setdefaulttimeout(None)
    assert len(transport.exchange(CTRL_CMD_GETFAMILY, _name("nlctrl"))) == 1
    transport.close()


def test_a_closed_handle_says_so_and_closes_again(transport: NetlinkTransport) -> None:
    transport.close()
    transport.close()
    with pytest.raises(ValueError, match="closed"):
        transport.exchange(CTRL_CMD_GETFAMILY, b"")


def test_opening_and_closing_a_thousand_times_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "GENL_NAME", "nlctrl")
    before = os.listdir("/proc/self/fd")
    for _ in range(1000):
        NetlinkTransport().close()
    assert os.listdir("/proc/self/fd") == before


def test_a_handle_that_is_dropped_warns_and_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "GENL_NAME", "nlctrl")
    before = os.listdir("/proc/self/fd")
    opened = NetlinkTransport()
    with pytest.warns(ResourceWarning, match="was not closed"):
        del opened
    assert os.listdir("/proc/self/fd") == before


def test_a_kernel_without_the_family_is_module_missing_and_leaks_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(netlink, "GENL_NAME", "nosuchfamily")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ModuleMissing, match="modprobe ip_vs"):
        NetlinkTransport()
    assert os.listdir("/proc/self/fd") == before


def test_a_network_namespace_that_is_not_there_is_named() -> None:
    with pytest.raises(IPVSError, match="/run/netns/nosuch") as caught:
        NetlinkTransport("nosuch")
    assert caught.value.errno == errno.ENOENT


@pytest.fixture
def elsewhere():
    """The path of another network namespace: that of a thread which has moved into a new one."""
    ready, leave = threading.Event(), threading.Event()

    def live_there() -> None:
        with contextlib.suppress(PermissionError):
            unshare_network()
        ready.set()
        leave.wait(timeout=60)

    thread = threading.Thread(target=live_there)
    thread.start()
    ready.wait(timeout=60)
    yield f"/proc/self/task/{thread.native_id}/ns/net"
    leave.set()
    thread.join(timeout=60)


@pytest.mark.skipif(os.geteuid() != 0, reason="entering a network namespace needs root")
def test_the_thread_comes_back_from_a_namespace_whatever_happens_there(elsewhere: str) -> None:
    home, there = os.readlink("/proc/thread-self/ns/net"), os.readlink(elsewhere)
    assert home != there
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(RuntimeError), netns.in_netns(_libnl.load(), elsewhere):
        assert os.readlink("/proc/thread-self/ns/net") == there
        raise RuntimeError
    assert os.readlink("/proc/thread-self/ns/net") == home
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_file_that_is_no_namespace_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IPVSError, match="network namespace"):
        NetlinkTransport(str(tmp_path / "file"))


def test_a_timeout_of_nothing_is_refused() -> None:
    for timeout_s in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="timeout_s"):
            NetlinkTransport(timeout_s=timeout_s)


@given(st.binary(max_size=100))
def test_any_bytes_are_split_into_messages_or_raise_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        for message in framing.messages(memoryview(data)):
            assert message.end - message.at >= 20
            framing.errno_of(memoryview(data), message)


def _error(sequence: int, code: int = 0) -> bytes:
    return _answer(framing.NLMSG_ERROR, sequence, struct.pack("=i", -code) + bytes(16))


BATCH = memoryview(bytearray(struct.pack("=IHHIIBBH", 20, 0, 1, 0, 0, 99, 1, 0) * 4))


def test_a_batch_says_which_messages_failed(silent: tuple[NetlinkTransport, socket.socket]) -> None:
    transport, kernel = silent
    first = transport.reserve(4)
    kernel.send(_error(first - 1, errno.EIO))  # of an earlier request
    kernel.send(_error(first + 1, errno.EEXIST) + _error(first + 2, errno.ESRCH))
    kernel.send(_error(first + 3))
    assert transport.send(BATCH, first, 4) == [(1, errno.EEXIST), (2, errno.ESRCH)]


def test_a_batch_whose_last_message_fails_ends_there(silent: tuple[NetlinkTransport, socket.socket]) -> None:
    transport, kernel = silent
    first = transport.reserve(4)
    kernel.send(_error(first + 3, errno.EINVAL))
    assert transport.send(BATCH, first, 4) == [(3, errno.EINVAL)]


def test_answers_of_a_batch_that_are_garbled_or_never_come_are_unknown(
    silent: tuple[NetlinkTransport, socket.socket],
) -> None:
    transport, kernel = silent
    transport._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 50_000))
    first = transport.reserve(4)
    kernel.send(_error(first, errno.EEXIST))
    unknown = [(index, errno.ETIMEDOUT) for index in (1, 2, 3)]
    assert transport.send(BATCH, first, 4) == [(0, errno.EEXIST), *unknown]
    first = transport.reserve(4)
    kernel.send(_error(first, errno.EEXIST))
    kernel.send(b"\xff" * 20)
    assert transport.send(BATCH, first, 4) == [(0, errno.EEXIST), *((index, errno.EBADMSG) for index in (1, 2, 3))]


def test_a_batch_on_a_dead_socket_fails_whole(transport: NetlinkTransport) -> None:
    os.close(transport._lib.nl_socket_get_fd(transport._handle))
    assert transport.send(BATCH, transport.reserve(4), 4) == [(index, errno.EBADF) for index in range(4)]
    with open(os.devnull) as file:  # so that closing the handle closes nothing of somebody else
        os.dup2(file.fileno(), transport._lib.nl_socket_get_fd(transport._handle))


def test_a_batch_for_a_family_under_a_new_number_is_sent_again(transport: NetlinkTransport) -> None:
    first = transport.reserve(3)
    wrong = bytearray()
    for index, name in enumerate(("nlctrl", "nosuchfamily", "nlctrl")):
        wrong += framing.request(CTRL_CMD_GETFAMILY, _name(name), 1 | 4 * (index == 2), 0xFFF0, first + index, 0)
    transport._family = 0xFFF0
    assert transport.send(memoryview(wrong), first, 3) == [(1, errno.ENOENT)]


def test_refusals_that_find_no_room_make_the_rest_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops answers when the receive buffer is full and says so once, by ENOBUFS."""
    monkeypatch.setattr(netlink, "GENL_NAME", "nlctrl")
    with contextlib.closing(NetlinkTransport(timeout_s=0.5)) as transport:
        transport._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        first = transport.reserve(500)
        batch = bytearray()
        for index in range(500):
            batch += framing.request(99, b"", 1 | 4 * (index == 499), transport.family, first + index, 0)
        failed = dict(transport.send(memoryview(batch), first, 500))
        assert failed.keys() == set(range(500))
        assert {*failed.values()} <= {errno.EOPNOTSUPP, errno.ENOBUFS, errno.ETIMEDOUT}
        assert errno.ENOBUFS in failed.values()
        assert dumped(transport)  # and the socket is as good as before


def test_as_many_refusals_as_a_batch_may_have_find_room(transport: NetlinkTransport) -> None:
    count = transport.room
    first = transport.reserve(count)
    batch = bytearray()
    for index in range(count):
        batch += framing.request(99, b"", 1 | 4 * (index == count - 1), transport.family, first + index, 0)
    failed = transport.send(memoryview(batch), first, count)
    assert failed == [(index, errno.EOPNOTSUPP) for index in range(count)]


def test_sequence_numbers_begin_anew_before_they_run_over(transport: NetlinkTransport) -> None:
    transport._sequence = 0xFFFFFFFF - 2
    assert transport.reserve(2) == 0xFFFFFFFE
    assert transport.reserve(1) == 1


def test_a_dump_that_was_left_does_not_hinder_the_next(
    silent: tuple[NetlinkTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel begins no second dump on a socket before the first was read to its end (EBUSY)."""
    transport, kernel = silent
    family, before = transport._family, transport._sequence

    def answered(_message: bytes) -> None:
        sequence = transport._sequence
        if sequence == before + 1:
            kernel.send(_answer(family, before, b"\0\0\0\0old!") + _error(sequence, errno.EBUSY))
            kernel.send(_answer(family, before, b"\0\0\0\0old!") + _done(before))
        else:
            kernel.send(_answer(family, sequence, b"\0\0\0\0new!") + _done(sequence))

    monkeypatch.setattr(transport, "_send", answered)
    assert dumped(transport) == [b"new!"]


def test_a_batch_as_long_as_the_transport_says_is_sent_and_a_longer_one_is_not(transport: NetlinkTransport) -> None:
    for more, code in ((0, errno.EOPNOTSUPP), (4, errno.EMSGSIZE)):
        first = transport.reserve(1)
        filling = framing.request(99, bytes((transport.longest & ~3) - 40 + more), 0, transport.family, 0, 0)  # no request
        batch = bytearray(filling + framing.request(99, b"", 5, transport.family, first, 0))
        assert transport.send(memoryview(batch), first, 1) == [(0, code)]


def test_a_batch_keeps_its_failures_when_the_family_cannot_be_resolved(
    transport: NetlinkTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> int:
        raise IPVSError("open", errno.EAGAIN, "IPVS")

    monkeypatch.setattr(transport, "_resolve", refused)
    first = transport.reserve(1)
    batch = bytearray(framing.request(CTRL_CMD_GETFAMILY, _name("nosuchfamily"), 5, transport.family, first, 0))
    assert transport.send(memoryview(batch), first, 1) == [(0, errno.ENOENT)]


ASK = [dumped, lambda transport: transport.exchange(CTRL_CMD_GETFAMILY, b"")]


@pytest.mark.parametrize("ask", ASK)
def test_a_signal_amid_sending_sends_again(
    transport: NetlinkTransport, monkeypatch: pytest.MonkeyPatch, ask: Callable[[NetlinkTransport], list[bytes]]
) -> None:
    send, interrupted = transport._lib.nl_sendto, [errno.EINTR]

    def sending(*arguments: object) -> int:
        if interrupted:
            raise _libnl.NlError("nl_sendto", 4, interrupted.pop())
        return int(send(*arguments))

    monkeypatch.setattr(transport._lib, "nl_sendto", sending)
    with contextlib.suppress(KernelError):  # the exchange names no family
        assert ask(transport)
    assert not interrupted


@pytest.mark.parametrize("ask", ASK)
def test_a_signal_amid_receiving_receives_again(
    silent: tuple[NetlinkTransport, socket.socket], ask: Callable[[NetlinkTransport], list[bytes]]
) -> None:
    transport, kernel = silent
    calls: list[int] = []

    def handler(number: int, _frame: object) -> None:
        calls.append(number)
        sequence = transport._sequence
        kernel.send(_answer(transport._family, sequence, b"\0\0\0\0new!") + _done(sequence))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert ask(transport) == [b"new!"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls == [signal.SIGALRM]


@pytest.mark.parametrize("ask", ASK)
def test_a_garbled_answer_is_a_decode_error(
    silent: tuple[NetlinkTransport, socket.socket], ask: Callable[[NetlinkTransport], list[bytes]]
) -> None:
    transport, kernel = silent
    kernel.send(b"\xff" * 20)
    with pytest.raises(DecodeError, match="byte"):
        ask(transport)
