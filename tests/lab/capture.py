"""What passes a host's interface, as far as the documents speak of it: IPv4 TCP packets of one port, in a tunnel or not.

Formats: RFC 791 (IPv4), RFC 9293 (TCP), RFC 2003 (ipip), RFC 2784 (GRE without options), and GUE as the kernel writes it
(draft-ietf-intarea-gue, 4 bytes; net/ipv4/fou_core.c).
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import NamedTuple

from tests.lab.netns import entered
from tests.lab.topology import Host

ETH_P_ALL, ETH_P_IP = 3, 0x0800
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h: checks and gossip come while nobody reads
_BUFFER = 16 << 20
_GRE, _GUE_PORT = 47, 6080
_MSS_OPTION = 2


class Frame(NamedTuple):
    """A packet on the wire. `outer`, `protocol` and `added` (bytes) are of the header around it: "", 0 and 0 without one."""

    sender: str
    receiver: str
    packet: str
    outer: str = ""
    protocol: int = 0
    added: int = 0
    mss: int = 0


class Capture:
    """Frames that pass eth0 of a host from now on, in both directions; a context manager."""

    def __init__(self, host: Host, port: int = 80) -> None:
        self._port = port
        with entered(host.name):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.setblocking(False)
        self._socket.bind(("eth0", ETH_P_ALL))

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def frames(self) -> list[Frame]:
        """What came since the last call."""
        found = []
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return found
            if frame := _frame(data, self._port):
                found.append(frame)


def _frame(data: bytes, port: int) -> Frame | None:
    """None: not a packet of this port."""
    (kind,) = struct.unpack_from(">H", data, 12)
    if kind != ETH_P_IP:
        return None
    sender, receiver = data[6:12].hex(":"), data[:6].hex(":")
    protocol, addresses, payload = _ip(data[14:])
    if protocol == socket.IPPROTO_TCP:
        packet, mss = _tcp(addresses, payload, port)
        return Frame(sender, receiver, packet, mss=mss) if packet else None
    inside = _unpacked(protocol, payload)
    if inside is None:
        return None
    protocol_inside, addresses_inside, segment = _ip(inside)
    packet, mss = _tcp(addresses_inside, segment, port) if protocol_inside == socket.IPPROTO_TCP else ("", 0)
    added = 20 + len(payload) - len(inside)
    return Frame(sender, receiver, packet, " → ".join(addresses), protocol, added, mss) if packet else None


def _ip(data: bytes) -> tuple[int, tuple[str, str], bytes]:
    """Protocol, addresses, what is inside (as long as the header says: a short frame is padded)."""
    (length,) = struct.unpack_from(">H", data, 2)
    addresses = (socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20]))
    return data[9], addresses, data[(data[0] & 15) * 4 : length]


def _unpacked(protocol: int, payload: bytes) -> bytes | None:
    """The IPv4 packet in a tunnel's packet; None: it is none."""
    if protocol == socket.IPPROTO_IPIP:
        return payload
    if protocol == _GRE and payload[:4] == struct.pack(">HH", 0, ETH_P_IP):
        return payload[4:]
    if protocol == socket.IPPROTO_UDP and struct.unpack_from(">H", payload, 2) == (_GUE_PORT,):
        return payload[12:]
    return None


def _tcp(addresses: tuple[str, str], segment: bytes, port: int) -> tuple[str, int]:
    """("10.9.0.2 → 10.1.0.100:80", the MSS that it offers or 0); ("", 0): another port."""
    ports = struct.unpack_from(">HH", segment)
    if port not in ports:
        return "", 0
    ends = [f"{address}:{port}" if number == port else address for address, number in zip(addresses, ports, strict=True)]
    return " → ".join(ends), _mss(segment[20 : (segment[12] >> 4) * 4])


def _mss(options: bytes) -> int:
    while options and options[0]:
        if options[0] == _MSS_OPTION:
            return int.from_bytes(options[2:4], "big")
        options = options[1:] if options[0] == 1 else options[options[1] :]
    return 0
