"""Carries planned operations out: many in one system call, within a time limit, with a memory of what was refused.

A refusal is a condition on the object: it is kept with its reason, tried again with growing pauses, and forgotten once the
plan asks for it no more. Does not: decide what to do, or know the world.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyipvs
from fusisd import plan
from fusisd.journal import Journal
from fusisd.ports import KernelPort
from pyipvs import Change, ServiceKey

AT_ONCE = 500  # operations in one call: some ten milliseconds in which the loop answers nobody
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation the kernel refused: how often, when it is tried again, and its sentence."""

    count: int
    retry_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """What came of the operations: the changes that were made, those refused and under which keys, the keys not come to,
    those where something was tried, and those that turned out to be somebody else's."""

    changes: Sequence[Change] = ()
    refused: Sequence[Change] = ()
    suspect: frozenset[ServiceKey] = frozenset()
    left: frozenset[ServiceKey] = frozenset()
    touched: frozenset[ServiceKey] = frozenset()
    lost: frozenset[ServiceKey] = frozenset()


class Applier:
    """Applies; remembers refusals. Lives on the loop."""

    def __init__(self, kernel: KernelPort, clock: Callable[[], float], journal: Journal) -> None:
        """`clock` is monotonic seconds; the `journal` is told what was made and what was refused."""
        self._kernel, self._clock, self._journal = kernel, clock, journal
        self._refusals: dict[plan.OpKey, Refusal] = {}

    @property
    def retry_s(self) -> float | None:
        """When the next refused operation is tried again."""
        return min((refusal.retry_s for refusal in self._refusals.values()), default=None)

    def due(self, now_s: float) -> set[ServiceKey]:
        """The keys where something is to be tried again by now."""
        return {key for (_, key, _), refusal in self._refusals.items() if refusal.retry_s <= now_s}

    def reasons(self) -> Mapping[ServiceKey, str]:
        """Why not everything is applied, by service."""
        reasons: dict[ServiceKey, str] = {}
        for (_, key, _), refusal in self._refusals.items():
            reasons.setdefault(key, refusal.reason)
        return reasons

    def apply(self, ops: Sequence[plan.Op], planned: Collection[ServiceKey], until_s: float, now_s: float) -> Done:
        """Carry out `ops`, the whole plan for the keys `planned`; at least one batch, more while there is time.

        Services come first and alone: where one could not be made, its destinations are not tried, for they would land in
        the service of whoever made it meanwhile.
        """
        self._forget(ops, planned)
        due = [op for op in ops if self._is_due(op, now_s)] if self._refusals else list(ops)
        services = [op for op in due if isinstance(op.change, pyipvs.AddService)]
        tried, failures = self._batches(services, until_s)
        others = due[len(services) :]
        if unmade := {failure.change.key for failure in failures}:
            others = [op for op in others if op.change.key not in unmade]
        if tried == len(services):
            more, failures_then = self._batches(others, until_s)
            tried, failures = tried + more, [*failures, *failures_then]
        ready = services + others
        failed = {id(failure.change): failure for failure in failures}
        bad = [op for op in ready[:tried] if id(op.change) in failed] if failed else []
        lost = {key for op in bad if (key := self._refused(op, failed[id(op.change)], now_s)) is not None}
        made = self._made([op for op in ready[:tried] if id(op.change) not in failed] if failed else ready[:tried])
        left, touched = _keys(ready[tried:]), _keys(ready[:tried])
        suspect = frozenset(failure.change.key for failure in failures)
        refused = [failure.change for failure in failures]
        return Done(made, refused, suspect, left, touched, frozenset(lost))

    def _is_due(self, op: plan.Op, now_s: float) -> bool:
        known = self._refusals.get(op.key)
        return known is None or known.retry_s <= now_s

    def _batches(self, ops: Sequence[plan.Op], until_s: float) -> tuple[int, list[pyipvs.Failure]]:
        """How many were tried within the time, and what was refused."""
        at, failures = 0, list[pyipvs.Failure]()
        while at < len(ops) and (at == 0 or self._clock() < until_s):
            batch = ops[at : at + AT_ONCE]
            failures += self._kernel.apply([op.change for op in batch])
            at += len(batch)
        return at, failures

    def _forget(self, ops: Sequence[plan.Op], planned: Collection[ServiceKey]) -> None:
        """Refusals that the plan asks for no more."""
        if not self._refusals:
            return
        asked = {op.key for op in ops}
        for gone in [key for key in self._refusals if key[1] in planned and key not in asked]:
            del self._refusals[gone]

    def _refused(self, op: plan.Op, failure: pyipvs.Failure, now_s: float) -> ServiceKey | None:
        """Note a refusal; the key when a service exists that we did not make: between our look and our try somebody
        else did, so it is theirs."""
        key = op.key
        known = self._refusals.get(key)
        count, reason = known.count + 1 if known else 1, str(failure.error)
        self._refusals[key] = Refusal(count, now_s + RETRY_S[min(count, len(RETRY_S)) - 1], reason)
        if known is None or known.reason != reason:
            self._journal.refused(op, reason)
        exists = isinstance(failure.change, pyipvs.AddService) and isinstance(failure.error, pyipvs.AlreadyExists)
        return failure.change.key if exists else None

    def _made(self, made: Sequence[plan.Op]) -> list[Change]:
        """The changes of these, which were carried out."""
        for op in made if self._refusals else ():
            self._refusals.pop(op.key, None)
        self._journal.ops(made)
        return [op.change for op in made]


def _keys(ops: Iterable[plan.Op]) -> frozenset[ServiceKey]:
    """Their keys; those of one service mostly stand together."""
    return frozenset(key for key, _ in groupby(op.change.key for op in ops))


class KernelTimeouts:
    """The connection timeouts of the network namespace, set when they change, and again until the kernel takes them."""

    def __init__(self, kernel: KernelPort) -> None:
        """Nothing is set before `set`."""
        self._kernel, self._done = kernel, pyipvs.Timeouts()
        self.problem = ""

    def set(self, wanted: pyipvs.Timeouts) -> None:
        """Have these; `problem` says why not."""
        if wanted == self._done:
            return
        try:
            self._kernel.set_timeouts(wanted)
        except pyipvs.IPVSError as error:
            self.problem = str(error)
        else:
            self.problem, self._done = "", wanted
