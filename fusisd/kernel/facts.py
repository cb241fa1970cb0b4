"""Looking at this balancer's kernel and network for the doctor: what IPVS answers, switches, addresses, neighbours, NAT.

Nothing is changed, but that a scheduler that is asked for is loaded. Needs root; works beside a running fusisd.
Does not: judge what it sees (doctor.py does).
"""

from __future__ import annotations

from collections.abc import Iterable

import pyipvs
from fusisd.errors import FusisError
from fusisd.kernel import addresses, firewall, nat, neighbours, sysctl
from fusisd.kernel.doctor import Asked, Facts
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.kernel.sysctl import When
from fusisd.limits import kernel_service
from fusisd.model import Service


async def look(asked: Asked) -> Facts:
    """All that the doctor asks for; some seconds when VIPs are many."""
    ipvs, loadable = _ipvs(asked.services)
    vips = {service.key.address for service in asked.services if service.key.address is not None}
    purposes = {When.MASQUERADE} if asked.nat else set()
    purposes |= {When.IPV6} if any(":" in vip for vip in vips) else set()
    switches, _right, unread = sysctl.look(sysctl.rows(purposes, sysctl.kernel_version()), asked.iface)
    others, unasked = await _neighbours(asked.iface, vips)
    return Facts(
        ipvs=ipvs,
        loadable=loadable,
        switches=tuple(switches),
        unread={name: why for name, why in unread.items() if not ipvs or ".vs." not in name},
        addresses=_present(),
        neighbours=others,
        unasked=unasked,
        nat={family: _nat(family) for family in asked.nat},
        forward=_forward(asked.nat),
        conntrack=sysctl.conntrack_warning(),
    )


def _ipvs(services: Iterable[Service]) -> tuple[str, dict[str, str]]:
    try:
        with pyipvs.IPVS() as handle:
            handle.timeouts()  # the first request that needs CAP_NET_ADMIN
            kernel = IpvsKernel(handle, None)
            return "", {service.name: kernel.can_load(kernel_service(service)) for service in services}
    except pyipvs.IPVSError as error:
        return str(error), {}


def _present() -> dict[str, frozenset[str]]:
    try:
        return addresses.present()
    except FusisError:
        return {}  # then no VIP is found here either, and that is said


async def _neighbours(iface: str, vips: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    found, unasked = {}, {}
    for vip in sorted(vips):
        try:
            found[vip] = await neighbours.answers(iface, vip)
        except FusisError as error:
            unasked[vip] = str(error)
    return found, unasked


def _nat(family: int) -> str:
    try:
        return nat.fault(family)
    except FusisError as error:
        return str(error)


def _forward(families: Iterable[int]) -> tuple[str, ...]:
    try:
        return firewall.warnings(families)
    except FusisError as error:
        return (f"cannot tell whether a firewall stops what is forwarded ({error}): as root, and with iptables installed",)
