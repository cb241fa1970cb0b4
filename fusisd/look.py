"""How the kernel's table is kept in view without ever reading it whole in one turn.

Once a second a cheap fingerprint of every service (/proc/net/ip_vs) tells which ones somebody changed: those are read,
in slices of a few milliseconds. What the fingerprint does not show (thresholds, tunnels, flags) a scrub finds that reads
every service in turn, a few at each look. Services that drain are read each second, for their connections.
Does not: know what is wanted, or change the kernel.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from fusisd.ports import KernelPort, KernelService, KernelTable
from pyipvs import Family, ServiceKey

log = logging.getLogger(__name__)

PERIOD_S = 1.0  # how often the fingerprint is looked at
SLICE_S = 0.01  # how long one turn reads what changed; the rest waits for the next, and a command comes in between
SCRUB_S = 0.005  # and how long it reads what seems unchanged


class Look:
    """What was seen last, and what must be read again. Lives on the loop."""

    def __init__(self, kernel: KernelPort, clock: Callable[[], float]) -> None:
        """`clock` is monotonic seconds."""
        self._kernel, self._clock = kernel, clock
        self._fingerprints: Mapping[ServiceKey, bytes] = {}
        self._expected: set[ServiceKey] = set()
        self._seen: set[ServiceKey] = set()
        self._stale: dict[ServiceKey, None] = {}
        self._round: deque[ServiceKey] = deque()
        self._period_s = 0.0
        self._scrub_due = False
        self.cost_s = 0.0
        self.problem = ""

    @property
    def next_s(self) -> float:
        """When to look again though nothing happens."""
        return 0.0 if self._stale or self._scrub_due else self._period_s

    def overdue(self, now_s: float) -> bool:
        """It was put off for so long that it cannot wait any more."""
        return now_s > self._period_s + PERIOD_S

    def whole(self) -> KernelTable:
        """The whole table, at the start. Raises pyipvs.IPVSError."""
        began_s = self._clock()
        self._fingerprints = self._kernel.probe()
        table = self._kernel.read()
        self._seen = set(table)
        self.cost_s = self._clock() - began_s
        return table

    def expect(self, keys: Iterable[ServiceKey]) -> None:
        """We changed these ourselves: another fingerprint is no news, but what they have is read again."""
        self._expected.update(keys)

    def suspect(self, keys: Iterable[ServiceKey]) -> None:
        """What we believe of these is wrong, for the kernel refused something: the next turn reads them."""
        self._stale.update(dict.fromkeys(keys))

    def again(self, now_s: float, asked: bool, drained: Iterable[ServiceKey]) -> Mapping[ServiceKey, KernelService | None]:
        """What was read anew, None for a service that is gone; `asked`: a reader wants the kernel as it is now."""
        periodic = now_s >= self._period_s
        if not periodic and not asked and now_s < self.next_s:
            return {}
        if periodic:
            self._period_s, self._scrub_due = now_s + PERIOD_S, True
        try:
            if periodic or asked:
                self._compare()
                self._stale.update(dict.fromkeys(drained))
            found = self._read_some(now_s, asked or not periodic)
        except OSError as error:
            if not self.problem:
                log.error("cannot read the kernel reason=%s", error)
            self.problem = str(error)
            self._fingerprints = {}
            return {}
        self.problem = ""
        self.cost_s = self._clock() - now_s
        return found

    def _read_some(self, now_s: float, at_least_one: bool) -> dict[ServiceKey, KernelService | None]:
        """What must be read, and then the scrub's part, as far as this turn has time: the look at the fingerprints of a
        large table takes all of it."""
        until_s, found = now_s + SLICE_S, dict[ServiceKey, KernelService | None]()
        if self._stale and (at_least_one or self._clock() < until_s):
            found = self._read(self._stale, until_s)
        if self._scrub_due and not self._stale and (not found and at_least_one or self._clock() < until_s):
            self._scrub_due = False
            found |= self._scrub(until_s + SCRUB_S)
        return found

    def _compare(self) -> None:
        """Note as stale what has another fingerprint than the last time."""
        before, after = self._fingerprints, self._kernel.probe()
        changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
        marks = [ServiceKey.fwmark(key.mark, Family.INET6) for key in changed if key.mark is not None]
        self._stale.update(dict.fromkeys((*changed, *marks, *self._expected)))
        self._expected.clear()
        self._fingerprints = after

    def _read(self, keys: dict[ServiceKey, None], until_s: float) -> dict[ServiceKey, KernelService | None]:
        """Read these, taking each from `keys`, one at least and while there is time."""
        found: dict[ServiceKey, KernelService | None] = {}
        for key in list(keys):
            found[key] = self._kernel.read_service(key)
            (self._seen.discard if found[key] is None else self._seen.add)(key)
            del keys[key]
            if self._clock() > until_s:
                break
        return found

    def _scrub(self, until_s: float) -> dict[ServiceKey, KernelService | None]:
        """Read some services that seem unchanged, the next ones in the round: of those seen, for the fingerprints' file
        leaves some out when another network namespace has services, too (seen on Linux 6.1, 2026-11)."""
        if not self._round:
            self._round.extend(self._seen)
        if not self._round:
            return {}
        keys = dict.fromkeys(self._round)
        found = self._read(keys, until_s)
        self._round = deque(keys)
        return found


def news(
    table: KernelTable, seen: Mapping[ServiceKey, KernelService | None]
) -> Mapping[ServiceKey, KernelService | None]:
    """Of what was read, what is other than it was known. Rows that are as they were are the known values themselves, so
    that whoever goes by identity finds what is new alone: after our own changes mostly nothing is."""
    kept = {key: _kept(table.get(key), service) for key, service in seen.items()}
    return {key: service for key, service in kept.items() if service is not table.get(key)}


def _kept(known: KernelService | None, seen: KernelService | None) -> KernelService | None:
    if known is None or seen is None:
        return seen
    before = known.destinations
    rows = {key: old if (old := before.get(key)) == row else row for key, row in seen.destinations.items()}
    same = len(rows) == len(before) and all(row is before.get(key) for key, row in rows.items())
    return known if same and known.service == seen.service else KernelService(seen.service, rows)


def drifted(
    table: KernelTable, seen: Mapping[ServiceKey, KernelService | None], owned: frozenset[ServiceKey]
) -> Iterator[ServiceKey]:
    """The services of ours that the kernel has otherwise than we knew: somebody else changed them."""
    return (key for key in owned.intersection(seen) if not alike(table.get(key), seen[key]))


def alike(known: KernelService | None, seen: KernelService | None) -> bool:
    """Whether two looks at a service show the same configuration; counts of connections do not matter."""
    if known is None or seen is None:
        return known is seen
    if known.service != seen.service or known.destinations.keys() != seen.destinations.keys():
        return False
    pairs = ((known.destinations[key], row) for key, row in seen.destinations.items())
    return all(old is row or old.destination == row.destination for old, row in pairs)


def told(service: KernelService | None) -> str:
    """What was found, for the log."""
    if service is None:
        return "none"
    rows = ", ".join(f"{row.destination} weight {row.destination.weight}" for row in service.destinations.values())
    return f"{service.service.scheduler} with {rows or 'no destinations'}"
