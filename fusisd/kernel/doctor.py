"""What of this balancer's kernel and network is wrong, why it matters, and how to mend it. Pure: facts in, findings out.

The order is that in which a packet meets things: IPVS, its schedulers, the switches, the VIP, masquerading, FORWARD.
Does not: look (facts.py does), or change anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fusisd.findings import Finding
from fusisd.kernel.sysctl import Switch
from fusisd.model import Announce, Service

_TRY = "fusisd puts it back within 10 s when it runs: systemctl start fusisd; fusisctl status says why it cannot"


@dataclass(frozen=True, slots=True)
class Asked:
    """What this balancer is for. `nat`: families (4, 6) with destinations by NAT; `withdrawn`: its VIPs are to be away."""

    iface: str
    services: tuple[Service, ...] = ()
    nat: frozenset[int] = frozenset()
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen; a text is "" when there is nothing to complain of. `ipvs`: why the kernel answers no IPVS. `loadable`:
    by service, why its scheduler or engine is not there. `unread` switches by name, with the reason. `addresses` with the
    interfaces that have them, `neighbours` by VIP the Ethernet address of somebody else who answers for it, `unasked` by VIP
    why nobody could be asked. `nat` by family. `forward` and `conntrack` are sentences that end in ": " or "; " and the
    mend."""

    ipvs: str = ""
    loadable: Mapping[str, str] = field(default_factory=dict)
    switches: tuple[Switch, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    addresses: Mapping[str, frozenset[str]] = field(default_factory=dict)
    neighbours: Mapping[str, str] = field(default_factory=dict)
    unasked: Mapping[str, str] = field(default_factory=dict)
    nat: Mapping[int, str] = field(default_factory=dict)
    forward: tuple[str, ...] = ()
    conntrack: str = ""


def examine(asked: Asked, facts: Facts) -> tuple[Finding, ...]:
    """All findings, well or not."""
    return (
        *_ipvs(asked, facts),
        *_switches(facts),
        *_vips(asked, facts),
        *(_nat(family, facts) for family in sorted(asked.nat)),
        *(_forward(facts) if asked.nat else ()),
    )


def _ipvs(asked: Asked, facts: Facts) -> Iterator[Finding]:
    if facts.ipvs:
        yield Finding("ip_vs", "", False, facts.ipvs, "as root: modprobe ip_vs; it is in every distribution's kernel")
        return
    yield Finding("ip_vs", "", True, "the kernel answers")
    for service in asked.services:
        why = facts.loadable.get(service.name, "")
        names = " and ".join(filter(None, (service.scheduler, service.persistence_engine)))
        mend = f"modprobe ip_vs_{service.scheduler}; or another: fusisctl service edit {service.name} --scheduler wrr"
        yield Finding("scheduler", service.name, not why, why or f"{names} is there", mend if why else "")


def _switches(facts: Facts) -> Iterator[Finding]:
    """Those that have the same reason stand for one finding, however many interfaces there are."""
    wrong: dict[tuple[str | None, str], list[Switch]] = {}
    for switch in facts.switches:
        if switch.value is not None:
            wrong.setdefault((switch.value, switch.reason), []).append(switch)
    for (value, reason), switches in wrong.items():
        seen = f"{', '.join(f'{switch.name} is {switch.previous}' for switch in switches)}, not {value}: {reason}"
        mend = f"sysctl -w {' '.join(f'{switch.name}={value}' for switch in switches)}"
        yield Finding("sysctl", "", False, seen, mend)
    for name, why in facts.unread.items():
        yield Finding("sysctl", "", False, f"{name}: {why}", "modprobe ip_vs; in a container: have the host set it")
    if not wrong and not facts.unread:
        yield Finding("sysctl", "", True, "forwarding and IPVS's switches are as they must be")


def _vips(asked: Asked, facts: Facts) -> Iterator[Finding]:
    seen = set()
    for service in asked.services:
        vip = service.key.address
        if vip is not None and vip not in seen:
            seen.add(vip)
            yield _vip(service, vip, asked, facts)


def _vip(service: Service, vip: str, asked: Asked, facts: Facts) -> Finding:
    """Exactly one machine must answer for a VIP: this one, unless it is to be elsewhere."""
    where, other = ", ".join(sorted(facts.addresses.get(vip, ()))), facts.neighbours.get(vip, "")
    if vip in facts.unasked:
        return Finding("vip", service.name, False, facts.unasked[vip], f"as root; ip link set {asked.iface} up")
    if where and other:
        seen = f"{vip} is on {where}, and {other} answers for it, too: clients go there or here by chance"
        mend = f"find {other} (bridge fdb, the switch): a real server needs arp_ignore=1 (fusis-agent doctor there)"
        return Finding("vip", service.name, False, seen, mend)
    if where:
        return Finding("vip", service.name, True, f"{vip} is on {where}, and nobody else answers for it")
    elsewhere = asked.withdrawn or not service.vip_managed
    if other:
        seen = f"{vip} is not here; {other} answers for it"
        mend = f"if that is another balancer of yours, all is well: fusisctl service edit {service.name} --vip external"
        return Finding("vip", service.name, elsewhere, seen, "" if elsewhere else mend)
    if asked.withdrawn or service.announce is Announce.WHEN_USABLE:
        why = "this balancer is withdrawn" if asked.withdrawn else "it is announced when a server is usable"
        return Finding("vip", service.name, True, f"{vip} is not here, and nobody answers for it: {why}")
    mend = _TRY if service.vip_managed else f"its owner must put {vip} here (keepalived, bird, ip address add)"
    return Finding("vip", service.name, False, f"nobody answers for {vip}: clients reach no balancer", mend)


def _nat(family: int, facts: Facts) -> Finding:
    why = facts.nat.get(family, "")
    seen = f"IPv{family}: {why}: servers without a route back answer past us" if why else f"IPv{family} is masqueraded"
    return Finding("nat", "", not why, seen, _TRY if why else "")


def _forward(facts: Facts) -> Iterator[Finding]:
    for sentence in facts.forward:
        seen, _, mend = sentence.partition(": ")
        yield Finding("forward", "", False, seen, mend)
    if not facts.forward:
        yield Finding("forward", "", True, "nothing in FORWARD drops servers' answers")
    seen, _, mend = facts.conntrack.partition("; ")
    yield Finding("conntrack", "", not seen, seen or "there is room for connections by NAT", mend)
