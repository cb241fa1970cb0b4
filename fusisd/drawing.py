"""A table of states as a Mermaid state diagram, so that what the documents show is what the code does: pure.

Does not: know any table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TypeVar

P = TypeVar("P", bound=Enum)
E = TypeVar("E", bound=Enum)

OUTSIDE = "[*]"
"""Mermaid's sign for where a life begins and ends."""


def drawn(
    table: Mapping[tuple[P, E], P], around: Iterable[str], shown: Mapping[P, str], meaning: Mapping[E, str]
) -> str:
    """The diagram: `around` are lines for the beginning and the end, `shown` what is said of each state (one that is not
    in it is outside), `meaning` that of each event. Events that leave a state as it is are not drawn."""
    edges: dict[tuple[P, P], list[str]] = {}
    for (before, event), after in table.items():
        if before is not after:
            edges.setdefault((before, after), []).append(str(event.value))

    def name(state: P) -> str:
        return str(state.value) if state in shown else OUTSIDE

    lines = ["stateDiagram-v2", *(f"    {line}" for line in around)]
    lines += [f"    {name(before)} --> {name(after)}: {', '.join(events)}" for (before, after), events in edges.items()]
    lines += [f"    {name(state)}: {name(state)} ({text})" for state, text in shown.items()]
    lines += [f"    %% {event.value}: {text}" for event, text in meaning.items()]
    return "\n".join(lines) + "\n"
