"""The table of foreign functions, and our bytes against those that libnl itself builds."""

from __future__ import annotations

import ctypes
import errno
import socket
import subprocess
import sys
from ctypes import c_char_p, c_int, c_uint8, c_uint32, c_void_p

import pytest

from pyipvs import (
    Destination,
    ForwardingMethod,
    LibraryMissing,
    Service,
    ServiceFlags,
    ServiceKey,
    Timeouts,
    Tunnel,
    TunnelType,
    _libnl,
    wire,
)
from pyipvs.const import CmdAttr, Command, DestAttr, SvcAttr
from pyipvs.netlink import request

FAMILY, SEQUENCE, PORT = 28, 7, 4242


class Libnl:
    """One message, built call by call with libnl's own functions."""

    def __init__(self, command: int, flags: int) -> None:
        self.nl, self.genl = ctypes.CDLL("libnl-3.so.200"), ctypes.CDLL("libnl-genl-3.so.200")
        for name, arguments, result in (
            ("nlmsg_alloc", (), c_void_p),
            ("nlmsg_free", (c_void_p,), None),
            ("nlmsg_hdr", (c_void_p,), c_void_p),
            ("nla_put", (c_void_p, c_int, c_int, c_char_p), c_int),
            ("nla_nest_start", (c_void_p, c_int), c_void_p),
            ("nla_nest_end", (c_void_p, c_void_p), c_int),
        ):
            function = getattr(self.nl, name)
            function.argtypes, function.restype = arguments, result
        self.genl.genlmsg_put.argtypes = (c_void_p, c_uint32, c_uint32, c_int, c_int, c_int, c_uint8, c_uint8)
        self.genl.genlmsg_put.restype = c_void_p
        self.message = self.nl.nlmsg_alloc()
        assert self.genl.genlmsg_put(self.message, PORT, SEQUENCE, FAMILY, 0, flags, command, 1)

    def put(self, number: int, data: bytes) -> Libnl:
        assert self.nl.nla_put(self.message, number, len(data), data) == 0
        return self

    def number(self, number: int, value: int, size: int = 4) -> Libnl:
        return self.put(number, value.to_bytes(size, sys.byteorder))

    def nest(self, number: int) -> c_void_p:
        nested: c_void_p = self.nl.nla_nest_start(self.message, number)
        return nested

    def end(self, nested: c_void_p) -> None:
        assert self.nl.nla_nest_end(self.message, nested) == 0

    def bytes(self) -> bytes:
        start = self.nl.nlmsg_hdr(self.message)
        made = ctypes.string_at(start, c_uint32.from_address(start).value)
        self.nl.nlmsg_free(self.message)
        return made

    def key(self) -> Libnl:
        self.number(SvcAttr.AF, socket.AF_INET, 2).number(SvcAttr.PROTOCOL, 6, 2)
        return self.put(SvcAttr.ADDR, b"\x0a\0\0\1" + bytes(12)).put(SvcAttr.PORT, b"\0\x50")

    def destination_key(self) -> Libnl:
        return self.put(DestAttr.ADDR, b"\x0a\0\0\2" + bytes(12)).put(DestAttr.PORT, b"\x1f\x90")


ACK, DUMP = 0x5, 0x301
WEB = ServiceKey.parse("tcp/10.0.0.1:80")


def ours(command: int, flags: int, attributes: bytes) -> bytes:
    return request(command, attributes, flags, FAMILY, SEQUENCE, PORT)


def theirs_with_key(command: int, flags: int = ACK) -> Libnl:
    message = Libnl(command, flags)
    service = message.nest(CmdAttr.SERVICE)
    message.key().end(service)
    return message


@pytest.mark.parametrize("command", [Command.FLUSH, Command.ZERO, Command.GET_INFO, Command.GET_CONFIG])
def test_a_command_without_attributes_is_as_libnl_builds_it(command: Command) -> None:
    assert ours(command, ACK, b"") == Libnl(command, ACK).bytes()


@pytest.mark.parametrize("command", [Command.GET_SERVICE, Command.DEL_SERVICE, Command.ZERO])
def test_a_command_on_a_service_is_as_libnl_builds_it(command: Command) -> None:
    assert ours(command, ACK, wire.encode_key(WEB)) == theirs_with_key(command).bytes()


def test_a_dump_is_as_libnl_builds_it() -> None:
    theirs = theirs_with_key(Command.GET_DEST, DUMP).bytes()
    assert ours(Command.GET_DEST, DUMP, wire.encode_key(WEB)) == theirs


def test_a_firewall_mark_is_as_libnl_builds_it() -> None:
    message = Libnl(Command.DEL_SERVICE, ACK)
    service = message.nest(CmdAttr.SERVICE)
    message.number(SvcAttr.AF, socket.AF_INET, 2).number(SvcAttr.FWMARK, 7).end(service)
    assert ours(Command.DEL_SERVICE, ACK, wire.encode_key(ServiceKey.fwmark(7))) == message.bytes()


@pytest.mark.parametrize("command", [Command.NEW_SERVICE, Command.SET_SERVICE])
def test_a_whole_service_is_as_libnl_builds_it(command: Command) -> None:
    message = Libnl(command, ACK)
    service = message.nest(CmdAttr.SERVICE)
    message.key().put(SvcAttr.SCHED_NAME, b"wlc\0").put(SvcAttr.PE_NAME, b"sip\0")
    flags, mask = 0x0001 | 0x0008, 0x003D
    message.put(SvcAttr.FLAGS, flags.to_bytes(4, sys.byteorder) + mask.to_bytes(4, sys.byteorder))
    message.number(SvcAttr.TIMEOUT, 300).put(SvcAttr.NETMASK, b"\xff\xff\xff\0").end(service)
    value = Service(WEB, "wlc", ServiceFlags.SCHED1, 300, 24, "sip")
    assert ours(command, ACK, wire.encode_service(value)) == message.bytes()


@pytest.mark.parametrize("command", [Command.NEW_DEST, Command.SET_DEST])
def test_a_whole_destination_is_as_libnl_builds_it(command: Command) -> None:
    message = theirs_with_key(command)
    destination = message.nest(CmdAttr.DEST)
    message.destination_key().number(DestAttr.FWD_METHOD, 2).number(DestAttr.WEIGHT, 5)
    message.number(DestAttr.TUN_TYPE, 1, 1).put(DestAttr.TUN_PORT, b"\x17\xc0")
    message.number(DestAttr.TUN_FLAGS, 1, 2)
    message.number(DestAttr.U_THRESH, 9).number(DestAttr.L_THRESH, 3)
    message.number(DestAttr.ADDR_FAMILY, socket.AF_INET, 2).end(destination)
    gue = Tunnel(TunnelType.GUE, 6080, 1)
    value = Destination("10.0.0.2", 8080, 5, ForwardingMethod.TUNNEL, 9, 3, gue)
    assert ours(command, ACK, wire.encode_destination(WEB, value)) == message.bytes()


def test_a_destinations_name_is_as_libnl_builds_it() -> None:
    message = theirs_with_key(Command.DEL_DEST)
    destination = message.nest(CmdAttr.DEST)
    message.destination_key().number(DestAttr.ADDR_FAMILY, socket.AF_INET, 2).end(destination)
    assert ours(Command.DEL_DEST, ACK, wire.encode_destination_key(WEB, "10.0.0.2", 8080)) == message.bytes()


def test_timeouts_are_as_libnl_builds_them() -> None:
    message = Libnl(Command.SET_CONFIG, ACK).number(CmdAttr.TIMEOUT_TCP, 900)
    message.number(CmdAttr.TIMEOUT_TCP_FIN, 120).number(CmdAttr.TIMEOUT_UDP, 300)
    assert ours(Command.SET_CONFIG, ACK, wire.encode_timeouts(Timeouts(900, 120, 300))) == message.bytes()


def test_only_functions_that_return_nothing_or_a_plain_number_go_unchecked() -> None:
    rows = {name: row for rows in _libnl.SIGNATURES.values() for name, row in rows.items()}
    assert {name for name, (_, _, check) in rows.items() if check is None} == {
        "nl_socket_free",
        "nl_socket_disable_msg_peek",
        "nl_socket_get_local_port",
    }


def test_a_function_outside_the_table_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nl_connect is not in SIGNATURES"):
        _libnl.load().nl_connect()


def test_a_failing_call_raises_with_its_name_and_errno() -> None:
    with pytest.raises(OSError, match="setns") as caught:
        _libnl.load().setns(-1, _libnl.CLONE_NEWNET)
    assert caught.value.errno == errno.EBADF


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libnl, "SIGNATURES", {"libnl-none.so.0": {}})
    with pytest.raises(LibraryMissing, match="apt-get install libnl-3-200 libnl-genl-3-200") as caught:
        _libnl.Library()
    assert caught.value.what == "libnl-none.so.0"


def test_importing_pyipvs_loads_no_library() -> None:
    script = "import pyipvs, pyipvs.testing; print('libnl' in open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"False\n"
