"""What is wrong on this server, why it matters, and how to mend it. Pure: facts in, findings out (facts.py looks).

The order is that in which a packet meets things: the cluster, ARP, the way in, the tunnel, the VIP, the port, the way back.
Does not: change anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fusisd.agent import prepare
from fusisd.agent.config import ServiceConfig
from fusisd.agent.prepare import BACK_TABLE, MSS_TABLE, Place, Vip
from fusisd.findings import Finding
from pyipvs import ForwardingMethod, Tunnel, TunnelType


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen. `switches` by name below net/ipv4/conf/, `devices` name -> up, `addresses` on which devices, `fou` by
    `FAMILY PORT`, `rules` and `routes` as prepare.Made has them, `mss` of answers from a VIP (None: as the interface),
    `failures` of the local check by service, `full_packets`: whether one of the interface's size reaches the balancer (None:
    it answers no ping at all), `serf`: why not joined, "" when it is."""

    place: Place
    switches: Mapping[str, int] = field(default_factory=dict)
    devices: Mapping[str, bool] = field(default_factory=dict)
    addresses: Mapping[str, frozenset[str]] = field(default_factory=dict)
    present: frozenset[str] = frozenset()
    mss: Mapping[str, int | None] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    full_packets: bool | None = None
    gateways: Mapping[int, bool] = field(default_factory=dict)
    """Whether there is any route to clients elsewhere, by family."""
    serf: str = ""


def examine(services: Mapping[str, tuple[ServiceConfig, Vip | None]], facts: Facts) -> tuple[Finding, ...]:
    """All findings, well or not."""
    found = [_serf(facts), _mtu(facts)]
    for name, (service, vip) in services.items():
        if service.method is ForwardingMethod.NAT:
            found += _nat(name, service, vip, facts)
        elif vip is None:
            mend = "make the service on the balancer, or give it here: --vip"
            found.append(Finding("vip", name, False, "its VIP is not known", mend))
        else:
            found += _direct(name, service, vip, facts)
        found.append(_listening(name, service, facts))
    return tuple(found)


def _serf(facts: Facts) -> Finding:
    mend = "systemctl status fusis-agent; can the balancer's port 7946 be reached by TCP and UDP?" if facts.serf else ""
    return Finding("serf", "", not facts.serf, facts.serf or "joined", mend)


def _mtu(facts: Facts) -> Finding:
    place = facts.place
    if facts.full_packets is None:
        return Finding("mtu", "", True, f"{place.iface} has {place.mtu}; the way is not known: the balancer answers no ping")
    if facts.full_packets:
        return Finding("mtu", "", True, f"packets of {place.mtu} bytes reach the balancer")
    mend = f"find the smaller link, and: ip link set {place.iface} mtu SIZE, on this server or on the way"
    seen = f"packets of {place.mtu} bytes ({place.iface}) do not reach the balancer, small ones do"
    return Finding("mtu", "", False, seen, mend)


def _direct(name: str, service: ServiceConfig, vip: Vip, facts: Facts) -> Iterator[Finding]:
    """Methods route and tunnel: this server answers for the VIP itself."""
    inner = prepare.family(vip.address)
    if inner == 4:
        yield _arp(name, vip, facts)
    if service.method is ForwardingMethod.TUNNEL:
        tunnel = service.tunnel or Tunnel()
        yield _unpacks(name, tunnel, vip, facts)
        if inner == 4:
            yield _rp_filter(name, prepare.device(tunnel, vip.address, facts.place.address)[0], facts)
        yield _segment(name, tunnel, vip, facts)
    yield _has_vip(name, service, vip, facts)
    back = facts.gateways.get(inner, False)
    mend = "" if back else "ip route add default via GATEWAY: answers go from here to the clients directly"
    yield Finding("route-back", name, back, "there is a route to clients" if back else "no route to clients elsewhere", mend)


def _arp(name: str, vip: Vip, facts: Facts) -> Finding:
    """The kernel takes the larger of all's and the interface's value (ip-sysctl.rst)."""
    iface = facts.place.iface
    ignore, announce = (_larger(facts, iface, switch) for switch in ("arp_ignore", "arp_announce"))
    on_lan = iface in facts.addresses.get(vip.address, frozenset())
    if on_lan:
        return Finding("arp", name, False, f"the VIP {vip.address} is on {iface}, so this server answers ARP for it",
                       f"ip address delete {vip.address}/32 dev {iface}")  # fmt: skip
    if ignore and announce >= 2:
        return Finding("arp", name, True, f"arp_ignore {ignore}, arp_announce {announce}")
    seen = f"arp_ignore is {ignore}, arp_announce {announce}: this server answers ARP for the VIP {vip.address}, too"
    mend = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2; restart fusis-agent"
    return Finding("arp", name, False, seen, mend)


def _larger(facts: Facts, device: str, switch: str) -> int:
    return max(facts.switches.get(f"all/{switch}", 0), facts.switches.get(f"{device}/{switch}", 0))


def _unpacks(name: str, tunnel: Tunnel, vip: Vip, facts: Facts) -> Finding:
    place = facts.place
    device, kind = prepare.device(tunnel, vip.address, place.address)
    outer = prepare.family(place.address)
    if device not in facts.devices:
        mend = f"restart fusis-agent, or: ip link add {device} type {kind} local {place.address}; ip link set {device} up"
        return Finding("tunnel", name, False, f"there is no device {device}: what the balancer packs is refused", mend)
    if not facts.devices[device]:
        return Finding("tunnel", name, False, f"{device} is down: nothing is unpacked", f"ip link set {device} up")
    if tunnel.type is TunnelType.GUE and f"fou {outer} {tunnel.port}" not in facts.present:
        six = " -6" if outer == 6 else ""
        return Finding("tunnel", name, False, f"nothing unpacks GUE on UDP port {tunnel.port}",
                       f"modprobe fou; ip fou add port {tunnel.port}{six} gue")  # fmt: skip
    return Finding("tunnel", name, True, f"{device} is up")


def _rp_filter(name: str, device: str, facts: Facts) -> Finding:
    value = _larger(facts, device, "rp_filter")
    if value != 1:
        return Finding("rp_filter", name, True, f"{value} on {device} (the larger of all's and its own)")
    seen = f"strict on {device} (the larger of all's and its own): every packet out of the tunnel is dropped"
    return Finding("rp_filter", name, False, seen, f"sysctl -w net.ipv4.conf.{device}.rp_filter=2")


def _segment(name: str, tunnel: Tunnel, vip: Vip, facts: Facts) -> Finding:
    bound, mss = prepare.segment(tunnel, vip.address, facts.place), facts.mss.get(vip.address)
    if mss is not None and mss <= bound:
        return Finding("mss", name, True, f"answers ask clients for segments of {mss} bytes; {bound} fit the tunnel")
    seen = f"answers ask clients for segments of {mss or 'the whole interface'}; {bound} bytes fit the tunnel"
    mend = f"restart fusis-agent: it keeps advmss {bound} in table {MSS_TABLE} (ip route show table {MSS_TABLE})"
    return Finding("mss", name, False, seen, mend)


def _has_vip(name: str, service: ServiceConfig, vip: Vip, facts: Facts) -> Finding:
    tunnel = service.tunnel or Tunnel()
    device = prepare.device(tunnel, vip.address, facts.place.address)[0]
    wanted = device if service.method is ForwardingMethod.TUNNEL else "lo"
    where = facts.addresses.get(vip.address, frozenset())
    if where - {facts.place.iface} and (wanted != device or wanted in where):
        return Finding("vip", name, True, f"{vip.address} is on {', '.join(sorted(where))}")
    length = 128 if prepare.family(vip.address) == 6 else 32
    mend = f"restart fusis-agent, or: ip address add {vip.address}/{length} dev {wanted}"
    return Finding("vip", name, False, f"{vip.address} is not on {wanted}: packets for it are not taken", mend)


def _listening(name: str, service: ServiceConfig, facts: Facts) -> Finding:
    if service.check.kind == "none":
        return Finding("listening", name, True, "not checked: its check is none")
    failure = facts.failures.get(name, "")
    if not failure:
        return Finding("listening", name, True, f"port {service.port} answers")
    mend = f"start the service; it must listen on all addresses, or on the VIP: ss -ltn 'sport = {service.port}'"
    return Finding("listening", name, False, f"port {service.port}: {failure}", mend)


def _nat(name: str, service: ServiceConfig, vip: Vip | None, facts: Facts) -> Iterator[Finding]:
    if not service.route_back:
        yield Finding("route-back", name, True, "the balancer masquerades: any route back does")
        return
    place, protocol = facts.place, str(vip.protocol) if vip else "tcp"
    inner = prepare.family(place.address)
    rule = f"rule {inner} from {place.address} ipproto {protocol} sport {service.port} lookup {BACK_TABLE}"
    route = f"route {inner} default via {place.balancer} dev {place.iface} table {BACK_TABLE}"
    missing = [text for text in (rule, route) if text not in facts.present]
    seen = f"no {missing[0]}: answers do not pass the balancer" if missing else f"answers go by {place.balancer}"
    yield Finding("route-back", name, not missing, seen, "restart fusis-agent" if missing else "")
