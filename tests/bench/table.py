"""The table that every contender loads, reads, changes and deletes; the same as in limit.c.

Service i is tcp 172.16.0.1+i:80 (IPv6: [fd00::i+1]:80) with scheduler rr; destination n of the whole table is
10.0.0.1+n:8080 ([fd01::n+1]:8080), method nat, weight 1.
Does not: measure.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PORT, REAL_PORT = 80, 8080
_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)(v6)?\Z")


@dataclass(frozen=True)
class Shape:
    """So many services with so many destinations each. Its text is `1000x10`, or `1000x10v6` for IPv6."""

    services: int
    each: int
    ipv6: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Raises ValueError."""
        if not (found := _SHAPE.match(text)):
            raise ValueError(f"{text!r} is not SERVICESxDESTINATIONS or SERVICESxDESTINATIONSv6")
        return cls(int(found[1]), int(found[2]), bool(found[3]))

    def __str__(self) -> str:
        return f"{self.services}x{self.each}{'v6' if self.ipv6 else ''}"

    @property
    def destinations(self) -> int:
        """Of all services."""
        return self.services * self.each

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if self.ipv6 else socket.AF_INET

    def service(self, number: int) -> str:
        """The address of a service."""
        return self._address(0xAC100001, "fd00", number)

    def real(self, number: int) -> str:
        """The address of a destination, counted through the whole table; any number is good."""
        return self._address(0x0A000001, "fd01", number)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(service, destination) numbers of every destination."""
        return ((number // self.each, number) for number in range(self.destinations))

    def _address(self, ipv4: int, ipv6: str, number: int) -> str:
        if not self.ipv6:
            return socket.inet_ntop(socket.AF_INET, struct.pack("!I", ipv4 + number))
        packed = bytes.fromhex(ipv6).ljust(12, b"\0") + struct.pack("!I", number + 1)
        return socket.inet_ntop(socket.AF_INET6, packed)


def in_kernel() -> tuple[int, int, set[int]]:
    """Services, destinations and the weights among them, as /proc says of this process's network namespace."""
    services, weights = 0, []
    for line in Path("/proc/self/net/ip_vs").read_text().splitlines():
        if line.startswith("TCP "):
            services += 1
        elif line.startswith("  -> ") and "Weight" not in line:
            weights.append(int(line.split()[-3]))
    return services, len(weights), set(weights)
