"""What the door takes the kernel takes: checked on any service with any destination, on the fake kernel and on the real one.

An accepted command that cannot be carried out is the worst thing the door can let in: it is on disk, and every turn and
every start meets it again.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from fusisd import state
from fusisd.commands import AddDestination, AddService, Command
from fusisd.errors import Refused
from fusisd.limits import kernel_destination, kernel_service
from fusisd.model import MAX_WEIGHT, SCHEDULERS, Destination, Intent, Service
from pyipvs import IPVS, ForwardingMethod, Tunnel, TunnelType
from tests.fusisd.strategies import services

Asked = tuple[Service, Destination]
WEIGHTS = st.sampled_from([-1, 0, 1, MAX_WEIGHT, MAX_WEIGHT + 1, 2**31 - 1])
HOSTS = st.sampled_from(["10.8.0.1", "127.0.0.1", "fd00::8", "::1", "240.0.0.1", "169.254.0.1"])
THRESHOLDS = st.sampled_from([0, 1, 2, 2**32 - 1])
TUNNELS = st.sampled_from([None, Tunnel(), Tunnel(TunnelType.GRE, flags=1), Tunnel(TunnelType.GUE, 6080, 2)])
ANYWHERE = st.builds(
    Destination, st.just("d"), HOSTS, st.sampled_from([0, 80, 65535]), WEIGHTS, st.sampled_from(ForwardingMethod),
    THRESHOLDS, THRESHOLDS, TUNNELS,
)  # fmt: skip


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """A service and a destination for it, of which much cannot be; where the ports agree more of it can."""
    service: Service = draw(services())
    key = service.key
    ports = st.sampled_from([key.port or 0, draw(st.sampled_from([0, 80]))])
    words = st.sampled_from([*SCHEDULERS, "none", "nosuch"])
    engines = st.sampled_from([None, "sip"])
    service = replace(service, scheduler=draw(words), destinations={}, persistence_engine=draw(engines))
    return service, replace(draw(ANYWHERE), port=draw(ports))


def taken(service: Service, destination: Destination) -> tuple[Service, Destination | None] | None:
    """What the door makes of them; None where it refuses."""
    accepted = Intent()
    commands: tuple[Command, ...] = (AddService(service), AddDestination(service.name, destination))
    for command in commands:
        try:
            accepted = state.apply(accepted, command)
        except Refused:
            break
    made = accepted.services.get(service.name)
    return None if made is None else (made, made.destinations.get(destination.name))


def carry_out(ipvs: IPVS, service: Service, destination: Destination | None) -> None:
    """As the plan would; raises what the kernel or pyipvs says against it."""
    ipvs.add_service(kernel_service(service))
    try:
        if destination is not None:
            ipvs.add_destination(service.key, kernel_destination(destination))
    finally:
        ipvs.delete_service(service.key)
