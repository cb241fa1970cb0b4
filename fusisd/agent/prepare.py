"""What a server needs before a service's packets can come: steps for each forwarding method, in order. Pure.

    nat       nothing; asked to route back: the service's answers alone go by the balancer (a rule by source port)
    route     the VIP on lo, and before it arp_ignore=1 and arp_announce=2, else two hosts answer ARP for the VIP
    tunnel    the same switches, a device that unpacks what the balancer packs, and the VIP on that: with rp_filter=2 (the
              kernel takes the larger of all's and the device's; 1 drops every packet) a device without any address drops
              them still (net/ipv4/fib_frontend.c, __fib_validate_source: last_resort; measured). And a smaller MSS in
              answers, so that what clients send leaves room for the outer header

IPv6 needs no ARP switches: the kernel answers neighbour solicitations for addresses of the interface asked alone
(net/ipv6/ndisc.c, ndisc_recv_ns). A VIP of IPv6 is made deprecated, so that it is nobody's source address.
Does not: look at the machine or change it (host.py does).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fusisd.agent.config import ServiceConfig
from pyipvs import ForwardingMethod, Protocol, Tunnel, TunnelType

MSS_TABLE = 7946  # Serf's port: a number that is nobody else's routing table
BACK_TABLE = 7947
PREFIX = "fusis-"

_ANSWER = {4: 40, 6: 60}  # IP and TCP header
_OUTER = {4: 20, 6: 40}
_INSIDE = {TunnelType.IPIP: 0, TunnelType.GUE: 12, TunnelType.GRE: 4}  # UDP 8 and GUE 4 (ip_vs_xmit.c); GRE without options


@dataclass(frozen=True, slots=True)
class Vip:
    """Where clients find a service."""

    address: str
    port: int
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True)
class Place:
    """The server as far as the steps depend on it. `routes`: the main table's rows by family, as `ip -json` writes them."""

    address: str
    iface: str
    balancer: str
    mtu: int = 1500
    routes: Mapping[int, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Switch:
    """A sysctl that must be `value` at least; names as paths below /proc/sys. `goes`: its device goes, and it goes along."""

    name: str
    value: int
    reason: str
    goes: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A thing that is there or not: an address, a device, a rule. `add` and `delete` are lines of `ip -batch`."""

    identity: str
    family: int
    add: str
    delete: str
    reason: str


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module that nothing loads by itself. It stays when we go: others may use it."""

    name: str
    reason: str


Step = Switch | Made | Module


def family(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def checked_at(service: ServiceConfig, vip: Vip | None, own: str) -> str:
    """Where this server checks a service: at the VIP that it takes packets for, else where the balancer sends them."""
    return vip.address if service.needs_vip and vip is not None else service.at or own


def steps(services: Iterable[tuple[ServiceConfig, Vip | None]], place: Place) -> tuple[Step, ...]:
    """All that these services need, each once, in the order in which it is made."""
    return tuple(dict.fromkeys(step for service, vip in services for step in _steps(service, vip, place)))


def _steps(service: ServiceConfig, vip: Vip | None, place: Place) -> Iterator[Step]:
    if service.method is ForwardingMethod.NAT:
        if service.route_back:
            yield from _way_back(service, vip, place)
        return
    if vip is None:
        return
    if family(vip.address) == 4:
        yield Switch("net/ipv4/conf/all/arp_ignore", 1, "only the balancer may answer ARP for the VIP")
        yield Switch("net/ipv4/conf/all/arp_announce", 2, "our own ARP requests must not name the VIP as ours")
    if service.method is ForwardingMethod.TUNNEL:
        yield from _tunnel(service.tunnel or Tunnel(), vip, place)
        yield _vip(vip.address, device(service.tunnel or Tunnel(), vip.address, place.address)[0])
    else:
        yield _vip(vip.address, "lo")


def _vip(vip: str, on: str) -> Made:
    word, options = (f"{vip}/128", " nodad preferred_lft 0") if family(vip) == 6 else (f"{vip}/32", "")
    reason = "packets for the VIP come here as they are, so it must be an address of this server"
    where = f"{word} dev {on}"
    return Made(f"address {vip} {on}", family(vip), f"address add {where}{options}", f"address delete {where}", reason)


def device(tunnel: Tunnel, vip: str, address: str) -> tuple[str, str]:
    """(name, kind and options for `ip link add`) of the device that unpacks what comes for this VIP to this address.

    GUE is unpacked by the UDP socket, which hands on what is inside as if it had come as ipip or sit (net/ipv4/fou_core.c).
    """
    if tunnel.type is TunnelType.GRE:
        return (f"{PREFIX}gre", "gre") if family(address) == 4 else (f"{PREFIX}gre6", "ip6gre")
    if family(address) == 6:
        return f"{PREFIX}ip6", "ip6tnl mode any"
    return (f"{PREFIX}ipip", "ipip") if family(vip) == 4 else (f"{PREFIX}sit", "sit mode ip6ip")


def _tunnel(tunnel: Tunnel, vip: Vip, place: Place) -> Iterator[Step]:
    outer = family(place.address)
    if tunnel.type is TunnelType.GUE:
        line = f"port {tunnel.port}" + (" -6" if outer == 6 else "")
        yield Module("fou", "it unpacks GUE, and no netlink request loads it")
        identity = f"fou {outer} {tunnel.port}"
        yield Made(identity, outer, f"fou add {line} gue", f"fou del {line}", "a UDP port that unpacks GUE")
    name, kind = device(tunnel, vip.address, place.address)
    add = f"link add {name} type {kind} local {place.address}"
    yield Made(f"link {name}", 4, add, f"link delete {name}", "it unpacks what the balancer's tunnel brings")
    if family(vip.address) == 4:
        switch = f"net/ipv4/conf/{name}/rp_filter"
        yield Switch(switch, 2, "answers do not go back by the tunnel, so strict would drop what comes", goes=True)
    yield Made(f"up {name}", 4, f"link set {name} up", "", "as long as it is down nothing is unpacked")
    yield from _segment(tunnel, vip.address, place)


def segment(tunnel: Tunnel, vip: str, place: Place) -> int:
    """The largest MSS whose packets still fit the interface inside this tunnel."""
    return place.mtu - _OUTER[family(place.address)] - _INSIDE[tunnel.type] - _ANSWER[family(vip)]


def _segment(tunnel: Tunnel, vip: str, place: Place) -> Iterator[Step]:
    """Answers from the VIP take the same routes as all others, with a smaller MSS in them (RFC 4459, 3.2)."""
    mss, inner = segment(tunnel, vip, place), family(vip)
    reason = "what clients send must leave room for the tunnel's header"
    for row in place.routes.get(inner, ()):
        where = _route(row)
        if where:
            whole = f"{where} advmss {mss} table {MSS_TABLE}"
            yield Made(f"route {inner} {whole}", inner, f"route replace {whole}", f"route delete {whole}", reason)
    rule = f"from {vip} lookup {MSS_TABLE}"
    yield Made(f"rule {inner} {rule}", inner, f"rule add pref {MSS_TABLE} {rule}", f"rule delete {rule}", reason)


def _route(row: Mapping[str, Any]) -> str:
    """A row of the main table in `ip route`'s words; "" for one that is not copied (several ways, link-local, our own)."""
    if str(row.get("dev", "lo")).startswith((PREFIX, "lo")) or str(row["dst"]).startswith("fe80:"):
        return ""
    words = [str(row["dst"]), *(["via", str(row["gateway"])] if "gateway" in row else []), "dev", str(row["dev"])]
    words += ["onlink"] if "onlink" in row.get("flags", ()) else []
    words += ["metric", str(row["metric"])] if "metric" in row else []  # else of two defaults one would replace the other
    return " ".join(words)


def _way_back(service: ServiceConfig, vip: Vip | None, place: Place) -> Iterator[Step]:
    """The service's answers by the balancer, whatever the default route is (all else goes as before)."""
    inner, protocol = family(place.address), str(vip.protocol if vip else Protocol.TCP)
    reason = "with method nat the balancer must see the answers"
    route = f"default via {place.balancer} dev {place.iface} table {BACK_TABLE}"
    yield Made(f"route {inner} {route}", inner, f"route replace {route}", f"route delete {route}", reason)
    rule = f"from {place.address} ipproto {protocol} sport {service.port} lookup {BACK_TABLE}"
    yield Made(f"rule {inner} {rule}", inner, f"rule add pref {BACK_TABLE} {rule}", f"rule delete {rule}", reason)
