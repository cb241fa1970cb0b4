"""The tags contract: what a real server offers, as the text of a Serf tag and back. Balancer and agent both use it.

Serf carries 512 bytes of tags for each node (serf/serf.go, encodeTags), so an offer is written in its shortest form:
what is as usual is left out. `80` is port 80 by nat with weight 1; `80/route/3`; `80/gue:6081//down`. The whole grammar is
in docs/tags.md. What is not known here and stands where options stand is ignored, for a newer agent may say more.
Does not: know Serf, or what becomes of an offer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusisd.errors import Invalid
from fusisd.model import Offer, OfferState, Tier, checked_address, checked_name, checked_port, checked_weight
from pyipvs import ForwardingMethod, Tunnel, TunnelType

ROLE_TAG = "role"
AGENT_ROLE = "agent"
BALANCER_ROLE = "balancer"
SERVICE_TAG_PREFIX = "s:"
SIZE_LIMIT = 512
GUE_PORT = 6080  # IANA's, and the one that is meant when none is said

_METHODS = {"": ForwardingMethod.NAT, "nat": ForwardingMethod.NAT, "route": ForwardingMethod.ROUTE}
_TUNNELS = {"tunnel": TunnelType.IPIP, "ipip": TunnelType.IPIP, "gue": TunnelType.GUE, "gre": TunnelType.GRE}
METHODS = ("nat", "route", *_TUNNELS)
_AT = "at="
_STATES = {state.value: state for state in OfferState}


def encode(offer: Offer) -> str:
    """The shortest text that `decode` reads as this offer."""
    parts = [str(offer.port), _method(offer), "" if offer.weight == 1 else str(offer.weight)]
    parts += [offer.state.value] if offer.state is not OfferState.READY else []
    parts += ["backup"] if offer.tier is Tier.BACKUP else []
    parts += ["back"] if offer.routes_back else []
    parts += [] if offer.checked else ["check=none"]
    parts += [] if offer.address is None else [f"{_AT}{offer.address}"]
    while not parts[-1]:
        parts.pop()
    return "/".join(parts)


def decode(service: str, text: str) -> Offer:
    """The offer of `s:<service>` = `text`. Raises Invalid."""
    checked_name(service, "service")
    port, method, weight, *options = [*text.split("/"), "", ""][: max(3, text.count("/") + 1)]
    forwarding, tunnel = parse_method(method)
    states = [_STATES[option] for option in options if option in _STATES]
    claimed = [checked_address(option.removeprefix(_AT)) for option in options if option.startswith(_AT)]
    return Offer(
        service=service,
        port=checked_port(_number(port, "port")),
        method=forwarding,
        weight=checked_weight(_number(weight, "weight")) if weight else 1,
        checked="check=none" not in options,
        tunnel=tunnel,
        tier=Tier.BACKUP if "backup" in options else Tier.PRIMARY,
        state=states[-1] if states else OfferState.READY,
        routes_back="back" in options,
        address=claimed[-1] if claimed else None,
    )


def parse_method(text: str) -> tuple[ForwardingMethod, Tunnel | None]:
    """What `nat`, `route`, `tunnel` (= `ipip`), `gre`, `gue` and `gue:PORT` mean. Raises Invalid."""
    word, colon, port = text.partition(":")
    if word in _METHODS and not colon:
        return _METHODS[word], None
    if word not in _TUNNELS or (colon and word != "gue"):
        raise Invalid(f"method {text!r} must be one of {', '.join(METHODS)} (gue:PORT)", "method")
    kind = _TUNNELS[word]
    if kind is TunnelType.IPIP:
        return ForwardingMethod.TUNNEL, None
    if kind is TunnelType.GRE:
        return ForwardingMethod.TUNNEL, Tunnel(kind)
    udp = checked_port(_number(port, "tunnel port"), "tunnel port") if colon else GUE_PORT
    return ForwardingMethod.TUNNEL, Tunnel(kind, udp)


def encode_all(offers: Iterable[Offer]) -> dict[str, str]:
    """A node's tags. Raises Invalid: more than Serf carries."""
    tags = {ROLE_TAG: AGENT_ROLE}
    tags.update({f"{SERVICE_TAG_PREFIX}{offer.service}": encode(offer) for offer in offers})
    if size(tags) > SIZE_LIMIT:
        raise Invalid(
            f"the tags of {len(tags) - 1} services take {size(tags)} bytes, and Serf carries {SIZE_LIMIT}:"
            " shorten the services' names, or offer some from another node",
            "services",
        )
    return tags


def decode_all(tags: Mapping[str, str]) -> tuple[dict[str, Offer], tuple[str, ...]]:
    """The services that tags offer, and a sentence for each tag that is malformed (the others still count)."""
    offers: dict[str, Offer] = {}
    problems: list[str] = []
    if tags.get(ROLE_TAG) != AGENT_ROLE:
        return offers, ()
    for tag, text in sorted(tags.items()):
        if not tag.startswith(SERVICE_TAG_PREFIX):
            continue
        try:
            offer = decode(tag.removeprefix(SERVICE_TAG_PREFIX), text)
        except Invalid as error:
            problems.append(f"tag {tag!r}: {error}")
        else:
            offers[offer.service] = offer
    return offers, tuple(problems)


def size(tags: Mapping[str, str]) -> int:
    """The bytes that Serf counts: one of its own, then a msgpack map of the old specification (no str8)."""
    texts = [text.encode("utf-8", "surrogateescape") for pair in tags.items() for text in pair]
    return 1 + (1 if len(tags) < 16 else 3) + sum(len(text) + (1 if len(text) < 32 else 3) for text in texts)


def _method(offer: Offer) -> str:
    if offer.method is not ForwardingMethod.TUNNEL:
        return "" if offer.method is ForwardingMethod.NAT else "route"
    if offer.tunnel is None or offer.tunnel.type is TunnelType.IPIP:
        return "ipip"
    if offer.tunnel.type is TunnelType.GRE:
        return "gre"
    return "gue" if offer.tunnel.port == GUE_PORT else f"gue:{offer.tunnel.port}"


def _number(text: str, what: str) -> int:
    """Plain ASCII digits only: int() alone would also take '+1', ' 1 ' and '1_0'."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise Invalid(f"{what} {text!r} must be a whole number", what)
    return int(text)
