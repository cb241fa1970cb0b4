"""What Serf shows of the real servers, turned into nodes and what they offer: pure.

The list is the truth and absence is never evidence: a node that is missing from a list (our own agent restarted, or is
cut off) keeps its last state and is flagged; only a status seen, or a tag seen dropped, changes what we know. A node's
life is the table in nodes.py, the tags contract is docs/tags.md.
Does not: talk to Serf, read a clock, or decide what happens to a destination (target.py does).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from fusisd.admission import Policy, admit, beyond, crowded
from fusisd.errors import Invalid
from fusisd.model import Node, NodeStatus, Offer, OfferState, checked_address
from fusisd.nodes import DRAINS, TABLE, Sight, sight_of
from fusisd.ports import Remembered
from fusisd.tags import AGENT_ROLE, ROLE_TAG, decode_all

WITHDRAWN_KEPT_S = 300.0  # how long a dropped offer is remembered: longer than any drain lasts
LOST_AFTER_S = 86400.0  # as Serf reaps a failed node (reconnect_timeout)


class Member(Protocol):
    """A row of Serf's member list, as any client may hand it over."""

    @property
    def name(self) -> str:
        """The node's name; any text."""

    @property
    def address(self) -> str:
        """Its address, canonical text."""

    @property
    def status(self) -> str:
        """alive, leaving, left, failed, or a word of a newer Serf."""

    @property
    def tags(self) -> Mapping[str, str]:
        """Its tags."""


Nodes = Mapping[str, Node]

_ANY = Policy()


def update(
    nodes: Nodes,
    members: Iterable[Member],
    now_s: float,
    policy: Policy = _ANY,
    serving: Callable[[], Collection[str]] = frozenset,
) -> Nodes:
    """What we know after seeing this list. Members that never said role=agent are not ours to look at; what others offer
    and `policy` refuses is not known here but as a problem of theirs. `serving` names the nodes whose destinations get
    connections; it is asked when the list leaves somebody out."""
    after: dict[str, Node] = {}
    asking: dict[str, Member] = {}
    for member in members:
        known = nodes.get(member.name)
        if known is None and member.tags.get(ROLE_TAG) != AGENT_ROLE:
            continue
        told = (member.address, member.status, member.tags)
        if known is not None and known.told == told and not _aged(known, now_s):
            # Of 5,000 in a list hardly any has changed: reading them all takes 46 ms (2026-11).
            after[member.name] = replace(known, missing_s=None) if known.missing else known
        else:
            after[member.name] = replace(_seen(known, member, now_s, policy), told=told)
        if after[member.name] is not known:
            asking[member.name] = member
    absent = nodes.keys() - after.keys()
    busy = serving() if absent or any(node.missing for node in nodes.values()) else frozenset[str]()
    for name in absent:
        node = replace(nodes[name], missing_s=now_s) if nodes[name].missing_s is None else nodes[name]
        if (status := TABLE[node.status, _unlisted(node, name in busy, now_s)]) is not NodeStatus.UNSEEN:
            after[name] = replace(node, status=status)
    if asking and len(after) > policy.destinations:  # else no service can have too many
        for name, services in _crowded_out(nodes, after, asking, policy, busy).items():
            after[name] = _seen(nodes.get(name), asking[name], now_s, policy, services)  # not `told`: it asks again
    return after


def _unlisted(node: Node, serves: bool, now_s: float) -> Sight:
    """What it means that the list leaves this node out."""
    if not serves and node.missing_s is not None and now_s - node.missing_s > LOST_AFTER_S:
        return Sight.LOST
    return Sight.GONE if now_s - node.since_s > WITHDRAWN_KEPT_S else Sight.ABSENT


def _aged(node: Node, now_s: float) -> bool:
    """Whether something that its tags dropped has been remembered for long enough."""
    dropped = (at_s for name, at_s in node.withdrawn.items() if node.offers[name].state is OfferState.READY)
    return any(now_s - at_s >= WITHDRAWN_KEPT_S for at_s in dropped)


def _crowded_out(
    before: Nodes, after: Nodes, asking: Collection[str], policy: Policy, busy: Collection[str]
) -> Mapping[str, set[str]]:
    """The services in which a node of those `asking` finds no place."""
    wanted: dict[str, list[str]] = {}
    for name, node in after.items():
        for service in places(node, busy):
            wanted.setdefault(service, []).append(name)
    refused: dict[str, set[str]] = {}
    for service, names in wanted.items():
        if len(names) > policy.destinations:
            held = {name for name in names if name not in asking or service in places(before.get(name), busy)}
            for name in beyond(policy.destinations, names, held):
                if name in asking:
                    refused.setdefault(name, set()).add(service)
    return refused


def places(node: Node | None, busy: Collection[str] = ()) -> list[str]:
    """The services in which it counts: not those that it leaves, and none when no list has it and it is not `busy`."""
    if node is None or node.status in DRAINS or (node.missing and node.name not in busy):
        return []
    ready = OfferState.READY
    return [name for name, offer in node.offers.items() if name not in node.withdrawn or offer.state is not ready]


def recalled(remembered: Iterable[Remembered], now_s: float) -> Nodes:
    """The nodes we knew before our own restart: they stand until a list, a check or an operator contradicts them. What
    they had left drains on."""
    nodes: dict[str, Node] = {}
    for row in remembered:
        if row.left_s is not None and now_s - row.left_s > WITHDRAWN_KEPT_S:
            continue
        node = nodes.get(row.node) or Node(row.node, row.address, NodeStatus.REMEMBERED, since_s=now_s)
        withdrawn = node.withdrawn if row.left_s is None else {**node.withdrawn, row.offer.service: row.left_s}
        nodes[row.node] = replace(node, offers={**node.offers, row.offer.service: row.offer}, withdrawn=withdrawn)
    return nodes


def memory(nodes: Nodes) -> frozenset[Remembered]:
    """What must outlive our restart: every offer, and since when those drain whose node left or dropped them. Of several
    nodes that offer one service at one place the one that has it alone, so that it has it afterwards, too."""
    holders: dict[tuple[str, str, int], Node] = {}
    for node in nodes.values():
        for offer in node.offers.values():
            place = (offer.service, offer.address or node.address, offer.port)
            other = holders.get(place)
            if other is None or claim(node, offer.service) < claim(other, offer.service):
                holders[place] = node
    found = ((node, node.offers[service]) for (service, _, _), node in holders.items())
    return frozenset(Remembered(node.name, node.address, offer, _left_s(node, offer)) for node, offer in found)


def claim(node: Node, service: str, ends: bool = False) -> tuple[bool, bool, bool, float, str]:
    """A node's claim to the place where it offers a service: the smaller, the better. Who left loses it to all others, so
    that a server that comes back under another name is taken; then who is not alive, for a live server's word, "drain" as
    well, counts more than that of a dead one at its address; then who gives it up (`ends`: an operator took it out); then
    who came later, so that nobody takes another's place by its name."""
    gives_up = ends or service in node.withdrawn
    return (node.status in DRAINS, node.status is not NodeStatus.ALIVE, gives_up, node.since_s, node.name)


def _left_s(node: Node, offer: Offer) -> float | None:
    return node.since_s if node.status in DRAINS else node.withdrawn.get(offer.service)


def _seen(
    known: Node | None, member: Member, now_s: float, policy: Policy, full: Collection[str] = ()
) -> Node:
    """The node as a row of the list shows it; `full` are services that have no place for it."""
    offers, problems = decode_all(member.tags)
    sight = sight_of(member.status)
    status = TABLE[known.status if known else NodeStatus.UNSEEN, sight]
    if sight is Sight.OTHER:
        problems = (*problems, f"Serf calls it {member.status!r}, a word not known here")
    address, odd = _address(known, member)
    problems = (*problems, odd) if odd else problems
    offers = offers if address else {}
    same = known is not None and known.address == address
    offers, refusals = admit(policy, member.name, address, offers, places(known) if same else ())
    refusals += tuple(crowded(policy, service) for service in offers if service in full)
    offers = {service: offer for service, offer in offers.items() if service not in full}
    problems = problems if status is NodeStatus.LEFT else (*problems, *refusals)
    if known is None or not same:
        held = _held(offers, {}, {}, now_s)
        return Node(member.name, address, status, offers, now_s, problems=problems, withdrawn=held)
    goes = known.status in DRAINS and status in DRAINS  # leaving, then left: one drain
    found_again = known.status is NodeStatus.REMEMBERED and status is NodeStatus.ALIVE  # as it was before our restart
    since_s = known.since_s if known.status is status or goes or found_again else now_s
    if status is NodeStatus.LEFT and known.status is NodeStatus.REMEMBERED and known.withdrawn:
        since_s = min(known.withdrawn.values())  # it drained before our restart
    dropped = {service: now_s for service in known.offers if service not in offers}
    withdrawn = {
        service: at_s
        for service, at_s in {**dropped, **known.withdrawn}.items()
        if service not in offers and now_s - at_s < WITHDRAWN_KEPT_S
    }
    ready = OfferState.READY  # who dropped it has no word of its own for it any more
    kept = {s: replace(known.offers[s], state=ready) for s in withdrawn if s in known.offers}
    withdrawn |= _held(offers, known.offers, known.withdrawn, now_s)
    return Node(member.name, address, status, {**kept, **offers}, since_s, problems=problems, withdrawn=withdrawn)


def _address(known: Node | None, member: Member) -> tuple[str, str]:
    """Where it is, and what is wrong with that. Instead of what is no address what was known before stands, or ""."""
    try:
        return checked_address(member.address), ""
    except Invalid as error:
        return known.address if known is not None else "", str(error)


def _held(
    offers: Mapping[str, Offer], before: Mapping[str, Offer], since: Mapping[str, float], now_s: float
) -> dict[str, float]:
    """The services that the node itself says are not ready, with the time when it began to say so."""
    held = {}
    for service, offer in offers.items():
        if offer.state is not OfferState.READY:
            known = before.get(service)
            same = known is not None and known.state is offer.state
            held[service] = since.get(service, now_s) if same else now_s
    return held
