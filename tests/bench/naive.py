"""The baseline 'one libnl call per attribute': what a straightforward ctypes binding does for each request.

nlmsg_alloc, genlmsg_put, an nla_put for each attribute, nl_send_auto, nl_wait_for_ack, nlmsg_free; a dump by
nl_recvmsgs_default with a Python callback that takes each attribute with its own nla_get.
Does not: batch, reuse a message, or validate.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

NEW_SERVICE, DEL_SERVICE, GET_SERVICE, NEW_DEST, SET_DEST, DEL_DEST, GET_DEST = 1, 3, 4, 5, 6, 7, 8
_SERVICE, _DESTINATION = 1, 2  # IPVS_CMD_ATTR_*
_NLM_F_DUMP, _NL_CB_VALID, _NL_CB_CUSTOM = 0x300, 0, 3

_nl = ctypes.CDLL("libnl-3.so.200", use_errno=True)
_genl = ctypes.CDLL("libnl-genl-3.so.200", use_errno=True)
_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)


def _checked(result: int, function: Any, _arguments: Any) -> int:
    if result < 0:
        raise OSError(f"{function.__name__} failed: libnl {-result}")
    return result


def _call(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    if result is c_int:
        function.errcheck = _checked
    return function


socket_alloc = _call(_nl, "nl_socket_alloc", c_void_p)
socket_free = _call(_nl, "nl_socket_free", None, c_void_p)
socket_modify_cb = _call(_nl, "nl_socket_modify_cb", c_int, c_void_p, c_int, c_int, _CALLBACK, c_void_p)
send_auto = _call(_nl, "nl_send_auto", c_int, c_void_p, c_void_p)
wait_for_ack = _call(_nl, "nl_wait_for_ack", c_int, c_void_p)
recvmsgs_default = _call(_nl, "nl_recvmsgs_default", c_int, c_void_p)
nlmsg_alloc = _call(_nl, "nlmsg_alloc", c_void_p)
nlmsg_free = _call(_nl, "nlmsg_free", None, c_void_p)
nlmsg_hdr = _call(_nl, "nlmsg_hdr", c_void_p, c_void_p)
nla_put = _call(_nl, "nla_put", c_int, c_void_p, c_int, c_int, c_char_p)
nla_put_u16 = _call(_nl, "nla_put_u16", c_int, c_void_p, c_int, c_uint16)
nla_put_u32 = _call(_nl, "nla_put_u32", c_int, c_void_p, c_int, c_uint32)
nla_put_string = _call(_nl, "nla_put_string", c_int, c_void_p, c_int, c_char_p)
nla_nest_start = _call(_nl, "nla_nest_start", c_void_p, c_void_p, c_int)
nla_nest_end = _call(_nl, "nla_nest_end", c_int, c_void_p, c_void_p)
nla_parse_nested = _call(_nl, "nla_parse_nested", c_int, c_void_p, c_int, c_void_p, c_void_p)
nla_data = _call(_nl, "nla_data", c_void_p, c_void_p)
nla_len = _call(_nl, "nla_len", c_int, c_void_p)
nla_get_u8 = _call(_nl, "nla_get_u8", c_uint8, c_void_p)
nla_get_u16 = _call(_nl, "nla_get_u16", c_uint16, c_void_p)
nla_get_u32 = _call(_nl, "nla_get_u32", c_uint32, c_void_p)
nla_get_u64 = _call(_nl, "nla_get_u64", c_uint64, c_void_p)
nla_get_string = _call(_nl, "nla_get_string", c_char_p, c_void_p)
genl_connect = _call(_genl, "genl_connect", c_int, c_void_p)
genl_ctrl_resolve = _call(_genl, "genl_ctrl_resolve", c_int, c_void_p, c_char_p)
genlmsg_put = _call(_genl, "genlmsg_put", c_void_p, c_void_p, c_uint32, c_uint32, c_int, c_int, c_int, c_uint8, c_uint8)
genlmsg_parse = _call(_genl, "genlmsg_parse", c_int, c_void_p, c_int, c_void_p, c_int, c_void_p)


class Key(NamedTuple):
    """A TCP service."""

    family: int
    address: bytes
    port: int


class Real(NamedTuple):
    """A destination, method nat."""

    address: bytes
    port: int
    weight: int


def _bytes(attribute: int) -> bytes:
    return ctypes.string_at(nla_data(attribute), nla_len(attribute))


def _port(attribute: int) -> int:
    return socket.ntohs(nla_get_u16(attribute))


Fields = tuple[tuple[int, Callable[[int], Any]], ...]
_SERVICE_FIELDS: Fields = ((1, nla_get_u16), (2, nla_get_u16), (3, _bytes), (4, _port), (6, nla_get_string), (7, _bytes))
_SERVICE_FIELDS += ((8, nla_get_u32), (9, nla_get_u32))
_DESTINATION_FIELDS: Fields = ((1, _bytes), (2, _port), (3, nla_get_u32), (4, nla_get_u32), (5, nla_get_u32))
_DESTINATION_FIELDS += ((6, nla_get_u32), (7, nla_get_u32), (8, nla_get_u32), (9, nla_get_u32))
_DESTINATION_FIELDS += ((11, nla_get_u16), (13, nla_get_u8), (14, _port), (15, nla_get_u16))
_STATS64 = 12  # the number for services and for destinations

class NaiveIPVS:
    """A handle; `close` it."""

    def __init__(self) -> None:
        self._socket = socket_alloc()
        genl_connect(self._socket)
        self._family = genl_ctrl_resolve(self._socket, b"IPVS")
        self._callback = _CALLBACK(self._take)
        self._rows: list[dict[int, Any]] = []
        self._outer = _SERVICE
        self._fields = _SERVICE_FIELDS
        self._attributes: Any = (c_void_p * 7)()
        self._inner: Any = (c_void_p * 16)()
        self._stats: Any = (c_void_p * 12)()

    def close(self) -> None:
        """Give the socket up."""
        socket_free(self._socket)

    def service(self, command: int, key: Key) -> None:
        """NEW_SERVICE with scheduler rr, or DEL_SERVICE."""
        message = self._message(command)
        nest = self._put_key(message, key)
        if command == NEW_SERVICE:
            nla_put_string(message, 6, b"rr")
            nla_put(message, 7, 8, b"\0\0\0\0\xff\xff\xff\xff")
            nla_put_u32(message, 8, 0)
            nla_put_u32(message, 9, 128 if key.family == socket.AF_INET6 else 0xFFFFFFFF)
        nla_nest_end(message, nest)
        self._change(message)

    def destination(self, command: int, key: Key, real: Real) -> None:
        """NEW_DEST, SET_DEST or DEL_DEST."""
        message = self._message(command)
        nla_nest_end(message, self._put_key(message, key))
        nest = nla_nest_start(message, _DESTINATION)
        nla_put(message, 1, 16, real.address)
        nla_put_u16(message, 2, socket.htons(real.port))
        nla_put_u16(message, 11, key.family)
        if command != DEL_DEST:
            nla_put_u32(message, 3, 0)
            nla_put_u32(message, 4, real.weight)
            nla_put_u32(message, 5, 0)
            nla_put_u32(message, 6, 0)
        nla_nest_end(message, nest)
        self._change(message)

    def services(self) -> list[dict[int, Any]]:
        """Every field of every service by attribute number; the address as text, statistics as a list."""
        return self._dump(self._message(GET_SERVICE, _NLM_F_DUMP), _SERVICE, _SERVICE_FIELDS)

    def destinations(self, key: Key) -> list[dict[int, Any]]:
        """Every field of every destination of a service."""
        message = self._message(GET_DEST, _NLM_F_DUMP)
        nla_nest_end(message, self._put_key(message, key))
        return self._dump(message, _DESTINATION, _DESTINATION_FIELDS)

    def _message(self, command: int, flags: int = 0) -> int:
        message: int = nlmsg_alloc()
        genlmsg_put(message, 0, 0, self._family, 0, flags, command, 1)
        return message

    def _put_key(self, message: int, key: Key) -> int:
        nest: int = nla_nest_start(message, _SERVICE)
        nla_put_u16(message, 1, key.family)
        nla_put_u16(message, 2, socket.IPPROTO_TCP)
        nla_put(message, 3, 16, key.address)
        nla_put_u16(message, 4, socket.htons(key.port))
        return nest

    def _change(self, message: int) -> None:
        try:
            send_auto(self._socket, message)
            wait_for_ack(self._socket)
        finally:
            nlmsg_free(message)

    def _dump(self, message: int, outer: int, fields: Fields) -> list[dict[int, Any]]:
        self._rows, self._outer, self._fields = [], outer, fields
        socket_modify_cb(self._socket, _NL_CB_VALID, _NL_CB_CUSTOM, self._callback, None)
        try:
            send_auto(self._socket, message)
            recvmsgs_default(self._socket)
        finally:
            nlmsg_free(message)
        return self._rows

    def _take(self, message: int, _argument: int | None) -> int:
        """The callback: one answer of a dump."""
        genlmsg_parse(nlmsg_hdr(message), 0, self._attributes, 6, None)
        nla_parse_nested(self._inner, 15, self._attributes[self._outer], None)
        row: dict[int, Any] = {number: get(self._inner[number]) for number, get in self._fields if self._inner[number]}
        family = row[1] if self._outer == _SERVICE else row[11]
        at = 3 if self._outer == _SERVICE else 1
        row[0] = socket.inet_ntop(family, row[at][: 16 if family == socket.AF_INET6 else 4])
        nla_parse_nested(self._stats, 11, self._inner[_STATS64], None)
        row[_STATS64] = [nla_get_u64(self._stats[number]) for number in range(1, 11)]
        self._rows.append(row)
        return 0  # NL_OK
