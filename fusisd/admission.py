"""Who may join: which of the services that a node's tags offer are believed. Pure.

The gossip key keeps strangers out of Serf (docs/discovery.md); these are the limits for those who have it, so that one
server that was broken into, or set up wrongly, cannot draw another's traffic or fill the table. What stands is not pushed
out by what comes: who holds a place keeps it before newcomers, and newcomers are taken by name, so that the same list makes
the same answer.
Does not: know Serf, a clock, or what becomes of a service that is refused (membership.py does: it drains if it served).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fusisd.errors import Invalid
from fusisd.model import Offer

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def network(text: str) -> Network:
    """`10.1.0.0/16`, `fd00::/8`, or an address alone. Raises Invalid."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise Invalid(f"{text!r} is no network: {error}") from None


PRIVATE = tuple(
    network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
        "100.64.0.0/10",  # RFC 6598
        "fc00::/7",  # RFC 4193
    )
)
"""Networks that are not reached from the Internet. Neither loopback nor link-local ones: there are the balancer's own ports,
and in many clouds what tells a machine its secrets (169.254.169.254)."""

SERVICES = 32  # some 20 with names of ten letters fit into Serf's 512 bytes of tags
DESTINATIONS = 10_000  # what one balancer's core is measured with (docs/performance.md)


@dataclass(frozen=True, slots=True)
class Policy:
    """What nodes may offer. `allow`: networks of nodes and of what they claim; `allow_claims`: those whose nodes may offer
    another address than their own; `services` of one node, `destinations` of one service that nodes bring; `own`: the
    balancer's addresses, at which nobody offers anything."""

    allow: tuple[Network, ...] = PRIVATE
    allow_claims: tuple[Network, ...] = ()
    services: int = SERVICES
    destinations: int = DESTINATIONS
    own: frozenset[str] = frozenset()


class Admitted(NamedTuple):
    """The offers that are believed, and a sentence for each reason why others are not."""

    offers: dict[str, Offer]
    problems: tuple[str, ...]


def admit(
    policy: Policy, name: str, address: str, offers: Mapping[str, Offer], held: Collection[str] = ()
) -> Admitted:
    """What this node at this address may offer, seen alone; `held` are the services in which it has a place already."""
    if not offers:
        return Admitted({}, ())
    if "/" in name:
        return Admitted({}, ("refused: SERVICE/DESTINATION could not name it, for its name has a / (fusis-agent --name)",))
    if said := _elsewhere(policy, address):
        return Admitted({}, (f"refused: {said}",))
    found: dict[str, Offer] = {}
    problems = []
    for service, offer in sorted(offers.items(), key=lambda item: (item[0] not in held, item[0])):
        if problem := _refusal(policy, address, offer, len(found)):
            problems.append(f"service {service!r} refused: {problem}")
        else:
            found[service] = offer
    return Admitted(found, tuple(problems))


def beyond(limit: int, names: Iterable[str], held: Collection[str]) -> list[str]:
    """Which of these nodes have no place in a service that takes `limit`: those that hold one keep it first."""
    return sorted(names, key=lambda name: (name not in held, name))[limit:]


def crowded(policy: Policy, service: str) -> str:
    """What is said of a node that `beyond` names."""
    return f"service {service!r} refused: it has {policy.destinations} destinations by Serf (fusisd --serf-destinations)"


def _refusal(policy: Policy, address: str, offer: Offer, taken: int) -> str:
    """Why this offer of a node that may join is not taken after `taken` others; "" when it is."""
    if offer.address is not None and offer.address != address:
        if not _within(address, policy.allow_claims):
            return f"{address} may offer its own address only, not {offer.address} (fusisd --allow-claims)"
        if said := _elsewhere(policy, offer.address):
            return said
    if taken >= policy.services:
        return f"a node may offer {policy.services} services (fusisd --serf-services)"
    return ""


def _elsewhere(policy: Policy, address: str) -> str:
    """Why nothing is offered at this address; "" when it may be."""
    if str(_plain(address)) in policy.own:
        return f"{address} is the balancer's own address"
    if not _within(address, policy.allow):
        return f"{address} is in no network that may join (fusisd --serf-allow)"
    return ""


def _within(address: str, networks: Iterable[Network]) -> bool:
    found = _plain(address)
    return any(found.version == one.version and found in one for one in networks)


def _plain(address: str) -> Address:
    """Without the IPv6 clothes in which Serf writes an IPv4 address on a socket of both families."""
    found = ipaddress.ip_address(address)
    return found.ipv4_mapped or found if found.version == 6 else found
