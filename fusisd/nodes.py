"""The life of a node as a table: what a list of Serf's makes of what we hold. Pure.

Absence is never evidence: only a word seen leads from one status to another, whatever the status was before, and a node
that a list leaves out (our own agent restarted, or is cut off) stays what it is and is flagged as missing. A node that said
that it goes is forgotten once its drain is long over, for Serf reaps it from its list; any other when it was missing for a
day and serves nothing, or machines that die and come back under other names would be kept for ever. While no list comes
at all nothing happens to anybody.
Does not: read tags or a clock (membership.py does the one and is handed the other), or decide what becomes of a
destination (judge.py does).
"""

from __future__ import annotations

from enum import Enum

from fusisd.drawing import OUTSIDE, drawn
from fusisd.model import NodeStatus


class Sight(Enum):
    """What a list shows of a node."""

    ALIVE = "alive"
    LEAVING = "leaving"
    LEFT = "left"
    FAILED = "failed"
    OTHER = "another word"
    ABSENT = "absent"
    GONE = "absent for long"
    LOST = "absent and of no use"


MEANING = {
    Sight.ALIVE: "Serf's agent there answers the others",
    Sight.LEAVING: "it said that it goes",
    Sight.LEFT: "it went as it had said",
    Sight.FAILED: "it does not answer the others, and had not said that it goes",
    Sight.OTHER: "a word that is not known here, of a newer Serf",
    Sight.ABSENT: "the list leaves it out: flagged as missing",
    Sight.GONE: "the same, and it has been what it is for longer than any drain lasts",
    Sight.LOST: "absent for a day (so long Serf itself keeps a node that failed), and nothing of it serves",
}

TABLE = {
    (NodeStatus.UNSEEN, Sight.ALIVE): NodeStatus.ALIVE,
    (NodeStatus.UNSEEN, Sight.LEAVING): NodeStatus.LEAVING,
    (NodeStatus.UNSEEN, Sight.LEFT): NodeStatus.LEFT,
    (NodeStatus.UNSEEN, Sight.FAILED): NodeStatus.FAILED,
    (NodeStatus.UNSEEN, Sight.OTHER): NodeStatus.FAILED,  # a check alone can bring it in
    (NodeStatus.UNSEEN, Sight.ABSENT): NodeStatus.UNSEEN,
    (NodeStatus.UNSEEN, Sight.GONE): NodeStatus.UNSEEN,
    (NodeStatus.UNSEEN, Sight.LOST): NodeStatus.UNSEEN,
    (NodeStatus.REMEMBERED, Sight.ALIVE): NodeStatus.ALIVE,
    (NodeStatus.REMEMBERED, Sight.LEAVING): NodeStatus.LEAVING,
    (NodeStatus.REMEMBERED, Sight.LEFT): NodeStatus.LEFT,
    (NodeStatus.REMEMBERED, Sight.FAILED): NodeStatus.FAILED,
    (NodeStatus.REMEMBERED, Sight.OTHER): NodeStatus.REMEMBERED,
    (NodeStatus.REMEMBERED, Sight.ABSENT): NodeStatus.REMEMBERED,
    (NodeStatus.REMEMBERED, Sight.GONE): NodeStatus.REMEMBERED,
    (NodeStatus.REMEMBERED, Sight.LOST): NodeStatus.UNSEEN,
    (NodeStatus.ALIVE, Sight.ALIVE): NodeStatus.ALIVE,
    (NodeStatus.ALIVE, Sight.LEAVING): NodeStatus.LEAVING,
    (NodeStatus.ALIVE, Sight.LEFT): NodeStatus.LEFT,
    (NodeStatus.ALIVE, Sight.FAILED): NodeStatus.FAILED,
    (NodeStatus.ALIVE, Sight.OTHER): NodeStatus.ALIVE,
    (NodeStatus.ALIVE, Sight.ABSENT): NodeStatus.ALIVE,
    (NodeStatus.ALIVE, Sight.GONE): NodeStatus.ALIVE,
    (NodeStatus.ALIVE, Sight.LOST): NodeStatus.UNSEEN,
    (NodeStatus.LEAVING, Sight.ALIVE): NodeStatus.ALIVE,
    (NodeStatus.LEAVING, Sight.LEAVING): NodeStatus.LEAVING,
    (NodeStatus.LEAVING, Sight.LEFT): NodeStatus.LEFT,
    (NodeStatus.LEAVING, Sight.FAILED): NodeStatus.FAILED,
    (NodeStatus.LEAVING, Sight.OTHER): NodeStatus.LEAVING,
    (NodeStatus.LEAVING, Sight.ABSENT): NodeStatus.LEAVING,
    (NodeStatus.LEAVING, Sight.GONE): NodeStatus.UNSEEN,
    (NodeStatus.LEAVING, Sight.LOST): NodeStatus.UNSEEN,
    (NodeStatus.LEFT, Sight.ALIVE): NodeStatus.ALIVE,
    (NodeStatus.LEFT, Sight.LEAVING): NodeStatus.LEAVING,
    (NodeStatus.LEFT, Sight.LEFT): NodeStatus.LEFT,
    (NodeStatus.LEFT, Sight.FAILED): NodeStatus.FAILED,
    (NodeStatus.LEFT, Sight.OTHER): NodeStatus.LEFT,
    (NodeStatus.LEFT, Sight.ABSENT): NodeStatus.LEFT,
    (NodeStatus.LEFT, Sight.GONE): NodeStatus.UNSEEN,
    (NodeStatus.LEFT, Sight.LOST): NodeStatus.UNSEEN,
    (NodeStatus.FAILED, Sight.ALIVE): NodeStatus.ALIVE,
    (NodeStatus.FAILED, Sight.LEAVING): NodeStatus.LEAVING,
    (NodeStatus.FAILED, Sight.LEFT): NodeStatus.LEFT,
    (NodeStatus.FAILED, Sight.FAILED): NodeStatus.FAILED,
    (NodeStatus.FAILED, Sight.OTHER): NodeStatus.FAILED,
    (NodeStatus.FAILED, Sight.ABSENT): NodeStatus.FAILED,
    (NodeStatus.FAILED, Sight.GONE): NodeStatus.FAILED,
    (NodeStatus.FAILED, Sight.LOST): NodeStatus.UNSEEN,
}

DRAINS = frozenset({NodeStatus.LEAVING, NodeStatus.LEFT})
"""What such a node offered drains; what any other offers serves, as its check and its tags say."""

_SHOWN = {
    NodeStatus.REMEMBERED: "stands as it was",
    NodeStatus.ALIVE: "serves as its check says",
    NodeStatus.LEAVING: "drains",
    NodeStatus.LEFT: "drains",
    NodeStatus.FAILED: "serves while its check passes",
}
_WORDS = {sight.value: sight for sight in (Sight.ALIVE, Sight.LEAVING, Sight.LEFT, Sight.FAILED)}


def sight_of(word: str) -> Sight:
    """What Serf's word for a member that is in the list means."""
    return _WORDS.get(word, Sight.OTHER)


def diagram() -> str:
    """`TABLE` for docs, as a Mermaid state diagram."""
    return drawn(TABLE, [f"{OUTSIDE} --> {NodeStatus.REMEMBERED.value}: our own start"], _SHOWN, MEANING)
