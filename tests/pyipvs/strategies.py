"""Hypothesis strategies for the values of pyipvs: everything that its validation lets through."""

from __future__ import annotations

from hypothesis import strategies as st

from pyipvs import (
    Destination,
    Family,
    ForwardingMethod,
    Protocol,
    Service,
    ServiceFlags,
    ServiceKey,
    Tunnel,
    TunnelType,
)

IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.ip_addresses(v=6).map(str)
HOSTS = st.one_of(
    st.ip_addresses(network="10.0.0.0/8").filter(lambda address: address.packed[1:] != b"\0\0\0").map(str),
    st.ip_addresses(network="fd00::/8").map(str),
)
PORTS = st.integers(0, 65535)
NAMES = st.from_regex(r"[a-z0-9_]{1,15}", fullmatch=True)

KEYS = st.one_of(
    st.builds(ServiceKey, st.sampled_from(Protocol), st.one_of(IPV4, IPV6), st.integers(1, 65535)),
    st.builds(ServiceKey.fwmark, st.integers(1, 2**32 - 1), st.sampled_from(Family)),
)
FLAGS = st.sets(st.sampled_from([ServiceFlags.ONE_PACKET, ServiceFlags.SCHED1, ServiceFlags.SCHED3])).map(
    lambda flags: ServiceFlags(sum(flags))
)


def allowed(key: ServiceKey, flags: ServiceFlags) -> ServiceFlags:
    """The flags that a service of this key may have."""
    return flags if key.protocol in (None, Protocol.UDP) else flags & ~ServiceFlags.ONE_PACKET


@st.composite
def services(draw: st.DrawFn) -> Service:
    key = draw(KEYS)
    netmask = draw(st.integers(1, 128 if key.family is Family.INET6 else 32))
    persistence_s = draw(st.integers(0, 86400))
    return Service(key, draw(NAMES), allowed(key, draw(FLAGS)), persistence_s, netmask, draw(st.none() | NAMES))


TUNNELS = st.one_of(
    st.builds(Tunnel, st.just(TunnelType.GUE), st.integers(1, 65535), st.integers(0, 3)),
    st.builds(Tunnel, st.sampled_from([TunnelType.IPIP, TunnelType.GRE]), st.just(0), st.integers(0, 1)),
)


@st.composite
def destinations(draw: st.DrawFn) -> Destination:
    method = draw(st.sampled_from([ForwardingMethod.NAT, ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL]))
    upper = draw(st.integers(0, 2**32 - 1))
    return Destination(
        draw(HOSTS),
        draw(PORTS),
        draw(st.integers(0, 2**31 - 1)),
        method,
        upper,
        draw(st.integers(0, upper)),
        draw(TUNNELS) if method is ForwardingMethod.TUNNEL else None,
    )
