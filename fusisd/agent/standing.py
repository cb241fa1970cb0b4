"""How each service of this server stands: its state, its share, its VIP; and the tags that say so.

Whoever changes a state says why; a change wakes whoever tells the tags.
Does not: wait or look itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fusisd.agent.config import ServiceConfig
from fusisd.agent.prepare import Vip
from fusisd.agent.states import SAID, Event, State, after
from fusisd.errors import Invalid
from fusisd.model import MAX_WEIGHT, Offer, checked_weight
from fusisd.tags import SERVICE_TAG_PREFIX, encode_all

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Standing:
    """One service. `share` is what an operator said of its weight: `50%` or `3`, "" = as configured."""

    config: ServiceConfig
    state: State = State.STARTING
    reason: str = ""
    since_s: float = 0.0
    vip: Vip | None = None
    share: str = ""

    @property
    def weight(self) -> int:
        """The weight that its tag says."""
        return shared(self.config.weight, self.share)

    def offer(self) -> Offer | None:
        """What its tag says; None: as the tag is."""
        said = SAID[self.state]
        return None if said is None else self.config.offer(said, self.weight)


class Standings:
    """All of them, by name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._clock = clock
        self._rows: dict[str, Standing] = {}
        self.changed = asyncio.Event()

    def __iter__(self) -> Iterator[Standing]:
        """Each, in the order of the configuration."""
        return iter(list(self._rows.values()))

    def __contains__(self, name: object) -> bool:
        """Whether there is such a service."""
        return name in self._rows

    def __getitem__(self, name: str) -> Standing:
        """One of them. Raises KeyError."""
        return self._rows[name]

    def has(self, row: Standing) -> bool:
        """Whether it is one of ours still, and has not begun anew."""
        return self._rows.get(row.config.name) is row

    def put(self, config: ServiceConfig) -> Standing:
        """Add a service, or give one another configuration: its life begins anew."""
        before = self._rows.get(config.name)
        row = self._rows[config.name] = Standing(config, since_s=self._clock(), share=before.share if before else "")
        self.changed.set()
        return row

    def drop(self, name: str) -> None:
        """Forget a service; its tag goes."""
        self._rows.pop(name, None)
        self.changed.set()

    def happened(self, name: str, event: Event, reason: str = "") -> None:
        """An event for one of them; one that is gone has none."""
        row = self._rows.get(name)
        if row is None:
            return
        state = after(row.state, event)
        if state is not row.state:
            was = row.state.value
            log.info("service name=%s state=%s was=%s reason=%s", name, state.value, was, reason or None)
            row.state, row.since_s = state, self._clock()
            self.changed.set()
            row.reason = reason
        elif event in (Event.UNPREPARED, Event.FAILED):
            row.reason = reason

    def share(self, name: str, share: str) -> None:
        """Another share for one of them. Raises Invalid."""
        row = self._rows[name]
        shared(row.config.weight, share)
        row.share = share
        self.changed.set()

    def tags(self, present: Mapping[str, str]) -> dict[str, str]:
        """The tags to have, given those that there are. Raises Invalid: more than Serf carries.

        Where there is no room for all, services that leave say nothing: a tag dropped drains as well (docs/tags.md).
        """
        offers = {row.config.name: offer for row in self if (offer := row.offer()) is not None}
        try:
            tags = encode_all(offers.values())
        except Invalid:
            tags = encode_all(offer for name, offer in offers.items() if self[name].state is not State.LEAVING)
        for row in self:
            tag = f"{SERVICE_TAG_PREFIX}{row.config.name}"
            if row.config.name not in offers and tag in present:
                tags[tag] = present[tag]
        return tags

    def rows(self) -> list[dict[str, object]]:
        """For `fusis-agent status`."""
        now_s = self._clock()
        return [
            {
                "service": row.config.name,
                "state": row.state.value,
                "reason": row.reason,
                "since_s": round(now_s - row.since_s, 1),
                "at": row.config.at,
                "port": row.config.port,
                "method": str(row.config.method),
                "tunnel": str(row.config.tunnel.type) if row.config.tunnel else None,
                "weight": row.weight,
                "vip": row.vip.address if row.vip else None,
            }
            for row in self
        ]


def shared(weight: int, share: str) -> int:
    """The weight under an operator's word: a part in per cent (at least 1 of what is not 0), or a number. Raises Invalid."""
    if not share:
        return weight
    digits = share.removesuffix("%")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 5:
        raise Invalid(f"weight {share!r} must be a number, or per cent as 50%", "weight")
    number = int(digits)
    if digits == share:
        return checked_weight(number)
    if number > 1000:
        raise Invalid(f"weight {share!r} must be 1000% at most", "weight")
    return min(max(1, weight * number // 100), MAX_WEIGHT) if weight and number else 0
