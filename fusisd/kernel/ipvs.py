"""IPVS of this network namespace as ports.KernelPort: pyipvs' batches, and a cheap fingerprint of each service.

Does not: decide, or keep a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import pyipvs
from fusisd.ports import KernelDestination, KernelService, KernelTable
from pyipvs import IPVS, BatchError, Change, DestinationStatus, Failure, ServiceKey, TableProbe
from pyipvs.ruleset import Entry

# A service nobody else has: tried with each scheduler once. 127.255.255.254 is on no wire, port 9 is discard.
_TRIAL = ServiceKey.parse("udp/127.255.255.254:9")


def may_change_networks() -> bool:
    """Whether CAP_NET_ADMIN (12) and CAP_NET_RAW (13) are in force for this process: capabilities(7), proc(5)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return effective >> 12 & 0b11 == 0b11


class IpvsKernel:
    """Fulfils ports.KernelPort; belongs to the thread that made the handle."""

    def __init__(self, ipvs: IPVS, probe: TableProbe | None) -> None:
        """`probe` None: there is no /proc/net/ip_vs (a fake kernel), so fingerprints come from a whole read."""
        self._ipvs, self._probe = ipvs, probe
        self._loadable: set[tuple[str, str | None]] = set()

    def read(self) -> KernelTable:
        """See ports.KernelPort."""
        return {entry.service.key: _service(entry.service, entry.status) for entry in self._ipvs.scan()}

    def read_service(self, key: ServiceKey) -> KernelService | None:
        """See ports.KernelPort."""
        try:
            return _service(self._ipvs.service(key).service, self._ipvs.destinations(key))
        except pyipvs.ServiceNotFound:
            return None

    def scan(self) -> Iterator[Entry]:
        """See ports.KernelPort."""
        return self._ipvs.scan()

    def probe(self) -> Mapping[ServiceKey, bytes]:
        """From /proc/net/ip_vs, 8 to 10 times cheaper than a dump (measured 2026-11). The file does not tell the family of
        a firewall mark: both stand under IPv4's key."""
        if self._probe is not None:
            return self._probe.services()
        return {key: hashlib.blake2b(repr(_settings(known)).encode()).digest() for key, known in self.read().items()}

    def apply(self, changes: Sequence[Change]) -> Sequence[Failure]:
        """See ports.KernelPort."""
        try:
            self._ipvs.apply(changes)
        except BatchError as error:
            return error.failures
        return ()

    def can_load(self, service: pyipvs.Service) -> str:
        """Tried by a service that no packet reaches, made and deleted in one system call, so that no crash leaves it. What
        the kernel has it keeps: only a good answer is remembered."""
        names = (service.scheduler, service.persistence_engine)
        if names in self._loadable or self.read_service(_TRIAL) is not None:
            return ""
        engine = service.persistence_engine
        trial = pyipvs.Service(_TRIAL, service.scheduler, persistence_s=60 if engine else 0, persistence_engine=engine)
        failures = self.apply([pyipvs.AddService(trial), pyipvs.DeleteService(_TRIAL)])
        refused = [str(failure) for failure in failures if isinstance(failure.change, pyipvs.AddService)]
        if refused:
            return refused[0]
        self._loadable.add(names)
        return ""

    def timeouts(self) -> pyipvs.Timeouts:
        """See ports.KernelPort."""
        return self._ipvs.timeouts()

    def set_timeouts(self, timeouts: pyipvs.Timeouts) -> None:
        """See ports.KernelPort."""
        self._ipvs.set_timeouts(timeouts.tcp_s, timeouts.tcp_fin_s, timeouts.udp_s)


def _service(service: pyipvs.Service, status: Sequence[DestinationStatus]) -> KernelService:
    rows = {row.destination.key: KernelDestination(row.destination, row.active, row.inactive) for row in status}
    return KernelService(service, rows)


def _settings(known: KernelService) -> object:
    return known.service, sorted((key, row.destination) for key, row in known.destinations.items())
