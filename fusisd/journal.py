"""Where things that happened become events: each goes into the ring with its time, and the line of the log is made of it.

There is one function for each sort of thing, called where it is known: control tells of nodes, checks, host, Serf and
drift, the applier of operations, the committer of commands. A line is the kind, then key=value.
Does not: decide, or say how a line looks beyond its text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from fusisd.events import Event, Ring
from fusisd.membership import Nodes
from fusisd.model import CheckTarget, Health, HostSeen
from fusisd.plan import Op

log = logging.getLogger(__name__)

OPS_AT_ONCE = 50  # operations of one turn that are events of their own; of the rest their number is told

_SHOWN = ("service", "destination", "node", "who", "text", "cause")
"""What of an event its line in the log has, as key=value (logs.py)."""

Moment = tuple[float, float]
"""Seconds since 1970, and monotonic ones."""

Place = tuple[str, str]
"""A service and one of its destinations, by name."""


class Journal:
    """Tells; lives on the loop. Its ring may be read by any thread."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] | None = None, epoch: str = "0") -> None:
        """`clock` is monotonic seconds, `wall` seconds since 1970; `epoch` is that of this run (see events.Ring)."""
        self._clock, self._wall = clock, wall or clock
        self.ring = Ring(epoch)
        self._ops = 0  # of this turn

    def tell(
        self, kind: str, text: str, level: int = logging.INFO, moment: Moment | None = None, **about: str
    ) -> None:
        """Something happened, at that moment or now; `about` are fields of Event."""
        ring, (wall_s, at_s) = self.ring, moment or self._now()
        event = Event(ring.epoch, ring.next_number, wall_s, at_s, kind, text, level=level, **about)
        ring.add(event)
        if log.isEnabledFor(level):
            told = [(name, value) for name in _SHOWN if (value := getattr(event, name))]
            log.log(level, " ".join([kind, *(f"{name}=%s" for name, _ in told)]), *(value for _, value in told))

    def _now(self) -> Moment:
        """For all of many things that are known together: to read two clocks for each may cost more than the rest of it."""
        return self._wall(), self._clock()

    def nodes(self, before: Nodes, after: Nodes) -> None:
        """Each node that came, changed its status or address, or offers bad tags."""
        if before is after:
            return
        for name, node in after.items():
            old = before.get(name)
            if old is None or old.status is not node.status or old.address != node.address:
                was = f", was {old.status.value}" if old is not None else ""
                self.tell("node", f"{node.status.value} at {node.address}{was}", node=name, cause="Serf's list of members")
            if node.problems and (old is None or old.problems != node.problems):
                self.tell("node", "; ".join(node.problems), logging.WARNING, node=name, cause="its tags")

    def health(
        self,
        before: Mapping[CheckTarget, Health],
        changed: Iterable[tuple[CheckTarget, Health]],
        places: Mapping[CheckTarget, Sequence[Place]],
    ) -> None:
        """Each check that came to another state, once for every destination that it is of; another reason for the same
        state is for the debug log."""
        known, moment = dict[CheckTarget, Health](), self._now()
        for check, found in changed:
            old, known[check] = known.get(check, before.get(check)), found
            was = old.state.value if old is not None else "unknown"
            text = f"{check.spec.kind.value} check of {check} says {found.state.value}, was {was}"
            if was == found.state.value:
                log.debug("check text=%s reason=%s", text, found.reason)
                continue
            for service, destination in places.get(check, ()):
                self.tell("health", text, moment=moment, service=service, destination=destination, cause=found.reason)

    def drift(self, service: str, key: object, seen: str) -> None:
        """Somebody else changed what is ours in the kernel."""
        text = f"the kernel has {key} as {seen}"
        self.tell("drift", text, logging.WARNING, service=service, cause="somebody else changed it")

    def host(self, before: HostSeen, after: HostSeen, withdrawn: bool) -> None:
        """VIPs that came and went, what could not be made so on the host, and others' hands that were undone."""
        moment = self._now()
        for vip in sorted(after.taken):
            self.tell("vip", f"{vip} is put back", logging.WARNING, cause="somebody took it away from the interface")
        for vip in sorted(after.vips - before.vips):
            self.tell("vip", f"{vip} is on the interface", moment=moment, cause="a service has it")
        for vip in sorted(before.vips - after.vips):
            cause = "this balancer is withdrawn" if withdrawn else "no service wants it there"
            self.tell("vip", f"{vip} left the interface", moment=moment, cause=after.failures.get(f"vip {vip}", cause))
        if after.counts.get("nat_restored", 0) > before.counts.get("nat_restored", 0):
            self.tell("nat", "our chain is written anew", logging.WARNING, cause="somebody changed it, or the jump to it")
        for what, why in after.failures.items():
            if before.failures.get(what) != why:
                self.tell("host", f"{what} cannot be made so", logging.ERROR, cause=why)
        for what in before.failures.keys() - after.failures.keys():
            self.tell("host", f"{what} is as it should be again")

    def serf(self, before: str, problem: str) -> None:
        """Our own Serf agent is there, or not."""
        if before != problem:
            text, level = ("not connected", logging.WARNING) if problem else ("connected", logging.INFO)
            self.tell("serf", text, level, cause=problem)

    def ops(self, made: Sequence[Op]) -> None:
        """Operations that the kernel carried out: each of a turn's first ones; `turned` says how many more."""
        moment = self._now()
        for op in made[: max(0, OPS_AT_ONCE - self._ops)]:
            self.tell("op", str(op), moment=moment, service=op.service, destination=op.destination, cause=op.reason)
        self._ops += len(made)

    def turned(self) -> None:
        """A turn is over."""
        if self._ops > OPS_AT_ONCE:
            self.tell("op", f"and {self._ops - OPS_AT_ONCE} more operations", cause="they came together")
        self._ops = 0

    def refused(self, op: Op, reason: str) -> None:
        """The kernel refused one; it is tried again."""
        self.tell("refused", str(op), logging.ERROR, service=op.service, destination=op.destination, cause=reason)
