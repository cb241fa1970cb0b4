"""What a service and a destination may be: the limits of IPVS, and what it takes and then drops packets for. Pure.

The kernel's own limits are in net/netfilter/ipvs/ip_vs_ctl.c (ip_vs_genl_set_cmd, ip_vs_add_service, ip_vs_new_dest); what a
value of pyipvs can hold they have already, and `kernel_service` and `kernel_destination` make such values.
Does not: know other services, or change anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import pyipvs
from fusisd.documents import decode_service, encode_service
from fusisd.errors import Invalid
from fusisd.model import FORWARDING_METHODS, SCHEDULERS, CheckSpec, Destination, Service, checked_name, checked_weight
from pyipvs import ForwardingMethod, Protocol, ServiceFlags, ServiceKey


def cannot_forward(key: ServiceKey, destination: Destination) -> str:
    """Why IPVS could not forward this service to this destination; "" when it can.

    Port and family rules of net/netfilter/ipvs/ip_vs_ctl.c and ip_vs_xmit.c: only NAT rewrites the packet's port, and only
    a tunnel can carry one address family inside the other.
    """
    method = destination.method
    if method not in FORWARDING_METHODS:
        return f"method {method} is the kernel's own: use {', '.join(map(str, FORWARDING_METHODS))}"
    if method is not ForwardingMethod.NAT and key.port and destination.port != key.port:
        return f"method {method} cannot change the port: use port {key.port}, or method nat"
    if method is not ForwardingMethod.TUNNEL and (":" in destination.address) != (key.family is pyipvs.Family.INET6):
        where = f"the VIP {key.address}" if key.address else str(key)
        return f"{destination.address} and {where} are of different families: only method tunnel can join them"
    return ""


def kernel_service(service: Service) -> pyipvs.Service:
    """The service as the kernel should have it.

    Schedulers sh and mh get their fallback flag: without it a client whose destination drains is refused
    (kubernetes#139497). Raises ValueError, which `checked` makes Invalid.
    """
    flags = service.flags
    if service.scheduler in ("sh", "mh"):
        flags |= ServiceFlags.SH_FALLBACK
    return pyipvs.Service(
        service.key, service.scheduler, flags, service.persistence_s, service.netmask, service.persistence_engine
    )


def kernel_destination(destination: Destination, weight: int | None = None) -> pyipvs.Destination:
    """The destination as the kernel should have it, with this weight instead of its own. Raises ValueError."""
    return pyipvs.Destination(
        destination.address,
        destination.port,
        destination.weight if weight is None else weight,
        destination.method,
        destination.upper_threshold,
        destination.lower_threshold,
        destination.tunnel,
    )


def checked_service(service: Service) -> Service:
    """The service. Raises Invalid for what the kernel would refuse, or take and then drop traffic for."""
    checked_name(service.name)
    if service.scheduler not in SCHEDULERS:
        raise Invalid(f"scheduler {service.scheduler!r} is unknown; one of {' '.join(SCHEDULERS)}", "scheduler")
    if service.key.address is not None and ipaddress.ip_address(service.key.address).is_loopback:
        raise Invalid(f"address {service.key.address} is loopback, which no client reaches", "address")
    if ServiceFlags.ONE_PACKET in service.flags and service.key.protocol not in (Protocol.UDP, None):
        raise Invalid("flag one_packet is for UDP: other protocols need a connection", "flags")
    if service.persistence_engine == "sip" and service.key.protocol not in (Protocol.UDP, None):
        # ip_vs_sip_fill_param() refuses every packet that is not UDP, and ip_vs_sched_persist() then drops it
        raise Invalid("persistence_engine sip is for UDP: IPVS would drop every connection", "persistence_engine")
    _check_passable(service.check)
    try:
        kernel_service(service)
    except ValueError as error:
        raise Invalid(str(error), _blamed(str(error), ("persistence", "netmask", "scheduler", "port"), "flags")) from None
    return service


def checked_destination(service: Service, destination: Destination) -> Destination:
    """The destination. Raises Invalid for what the kernel would refuse in this service, or not forward to."""
    checked_name(destination.name)
    checked_weight(destination.weight)
    _check_passable(destination.check)
    if problem := cannot_forward(service.key, destination):
        field = "port" if "port" in problem else "address" if "families" in problem else "method"
        raise Invalid(problem, field)
    try:
        kernel_destination(destination)
    except ValueError as error:
        raise Invalid(str(error), _blamed(str(error), ("tunnel", "threshold", "address", "port"), "address")) from None
    return destination


def _check_passable(check: CheckSpec | None) -> None:
    """Raises Invalid for a check that nobody could pass."""
    if check is not None and check.method == "HEAD" and check.body:
        raise Invalid("check.body cannot be in the answer to HEAD, which has none: use method GET", "check.body")


def _blamed(sentence: str, fields: Iterable[str], otherwise: str) -> str:
    """The field that a sentence of pyipvs speaks of."""
    return next((field for field in fields if field in sentence), otherwise)


def cannot_keep(service: Service) -> str:
    """Why what somebody else made could not be written down, read again at our next start and made again by us (raw netlink
    can ask for more than IPVS makes sense of); "" when it could."""
    try:
        read = decode_service(service.name, encode_service(service))
    except Invalid as error:
        return str(error)
    if read != service:
        return "it has settings that fusisd does not know"
    named = ((name, cannot_forward(service.key, one)) for name, one in service.destinations.items())
    return next((f"destination {name}: {problem}" for name, problem in named if problem), "")
