"""What a doctor says: one thing each, whether it is well, what was seen, and what mends it.

Of fusis-agent on a real server and of fusisctl on a balancer.
Does not: look, or print.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: whether it is well, what was seen, and how it is mended ("" when it is well)."""

    check: str
    service: str
    ok: bool
    seen: str
    mend: str = ""


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """For people: a line each, and below it the mend of what is not well."""
    for finding in findings:
        yield f"{'ok  ' if finding.ok else 'BAD '}{finding.check:10} {finding.service:10} {finding.seen}"
        if not finding.ok:
            yield f"    {'':21} mend: {finding.mend}"
