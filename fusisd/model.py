"""What things are: services, destinations, nodes, checks, commands and observations, all frozen values.

Identity, configuration and observation are different types. Addresses are canonical text, times are seconds of the
monotonic clock that the daemon hands down, mappings are never changed after they were handed out (copy, then replace).
Does not: decide anything, do I/O, or read a clock.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fusisd.errors import Invalid
from pyipvs import ForwardingMethod, Protocol, ServiceFlags, ServiceKey, Timeouts, Tunnel

# One name is a path segment, a metric label and a part of a Serf tag: letters, digits and . _ : - (no '/', no space).
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
_NAME = re.compile(NAME_PATTERN + r"\Z")

# Every scheduler of net/netfilter/ipvs/ in Linux 6.1; "none" (no scheduler: drops) is left out on purpose.
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos")

# What a destination may be asked for; the others of IPVS are the kernel's own doing.
FORWARDING_METHODS = (ForwardingMethod.NAT, ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL)

MAX_WEIGHT = 65535  # the kernel takes 2^31-1, but wrr's and wlc's products overflow far below; keepalived allows 65535

DestinationKey = tuple[str, int]
"""(address, port): what tells two destinations of one service apart in the kernel."""


def checked_name(name: str, what: str = "name") -> str:
    """`name`, or Invalid: 1 to 128 letters, digits and `. _ : -`, beginning with a letter or digit."""
    if not _NAME.match(name):
        raise Invalid(
            f"{what} {name!r} must be 1 to 128 letters, digits or . _ : - and begin with a letter or digit", what
        )
    return name


def checked_address(text: str, what: str = "address") -> str:
    """The canonical text of an IPv4 or IPv6 unicast address, or Invalid."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(f"{what} {text!r} is not an IPv4 or IPv6 address", what) from None
    if getattr(address, "scope_id", None):
        raise Invalid(f"{what} {text!r} has a zone; IPVS knows none", what)
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise Invalid(f"{what} {text} must be a unicast address", what)
    if address.version == 6 and address.is_link_local:  # ip_vs_new_dest() refuses it, and which link would it be on?
        raise Invalid(f"{what} {text} is link-local; IPVS knows no link to reach it on", what)
    # As the kernel's tools write it: ipaddress and inet_ntop differ on IPv4-mapped IPv6 addresses.
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    return socket.inet_ntop(family, address.packed)


def checked_port(port: int, what: str = "port") -> int:
    """`port`, or Invalid: 1 to 65535."""
    if not 1 <= port <= 65535:
        raise Invalid(f"{what} {port} must be 1 to 65535", what)
    return port


def checked_weight(weight: int) -> int:
    """`weight`, or Invalid: 0 (no new connections) to 65535."""
    if not 0 <= weight <= MAX_WEIGHT:
        raise Invalid(f"weight {weight} must be 0 to {MAX_WEIGHT}", "weight")
    return weight


# Checks: is a destination answering?


class CheckKind(Enum):
    """How a destination is asked. `NONE`: not at all, Serf's word and the operator's are all there is."""

    NONE = "none"
    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"
    UDP = "udp"
    DNS = "dns"
    SCRIPT = "script"


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How often a target is probed. `rise` passes in a row mean up, `fall` failures mean down."""

    interval_s: float = 1.0
    timeout_s: float = 0.5
    rise: int = 1
    fall: int = 2
    fast_interval_s: float = 0.25
    """Between the starts of probes while the last result disagrees with the state. A silent death is so known within
    interval + fall x timeout = 2 s, one with a refusal within interval + fast interval."""


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """What is asked of a service's destinations, without the address: what it means is kind by kind. `path_check`:
    those reached by route or tunnel are asked through IPVS, too (paths.py).

    `port` None: the destination's own. HTTP(S): `method`, `path`, `host` ("" = the address), `codes` (ranges, both ends
    in), `body` (must be found in the answer's first 64 KiB, "" = anything), `tls_name` (SNI, and verified when not "").
    UDP: `send` and `expect` as hex ("" = any answer but a port unreachable; no answer passes when `expect` is ""). DNS:
    `name` and `record` (A, AAAA ...) asked for by UDP. Script: `argv`, never through a shell; 0 passes.
    """

    kind: CheckKind = CheckKind.TCP
    port: int | None = None
    timing: CheckSettings = CheckSettings()
    method: str = "GET"
    path: str = "/"
    host: str = ""
    codes: tuple[tuple[int, int], ...] = ((200, 399),)
    body: str = ""
    tls_name: str = ""
    send: str = ""
    expect: str = ""
    name: str = ""
    record: str = "A"
    argv: tuple[str, ...] = ()
    path_check: bool = True


@dataclass(frozen=True, slots=True)
class Path:
    """A way through IPVS to one real server, the same for all VIPs: forwarded by this method, in this tunnel."""

    address: str
    method: ForwardingMethod
    tunnel: Tunnel | None = None

    def __str__(self) -> str:
        tunnel = f" ({self.tunnel.type})" if self.tunnel is not None else ""
        return f"{self.address} by {self.method}{tunnel}"


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """What is probed: this question to this address and port. Equal targets share one probe, whoever wants them. With a
    `path` the address is a VIP, and it is that path's real server that is asked."""

    address: str
    port: int
    spec: CheckSpec = CheckSpec()
    path: Path | None = None

    def __hash__(self) -> int:
        """Of what tells nearly all apart: the question's 17 fields cost ten times as much, at each look into a mapping."""
        return hash((self.address, self.port, None if self.path is None else self.path.address))

    def __str__(self) -> str:
        where = f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"
        return where if self.path is None else f"{where} at {self.path}"


class CheckState(Enum):
    """`UNKNOWN` until rise or fall was reached for the first time."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Health:
    """What the check of a target says; `since_s` is when it began to say so, `reason` why (`connection refused`)."""

    state: CheckState = CheckState.UNKNOWN
    since_s: float = 0.0
    reason: str = ""


# Intent: what operators want.


class Tier(Enum):
    """`BACKUP` destinations get weight only while no primary one can serve."""

    PRIMARY = "primary"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class Destination:
    """A place where a service's connections may go, as an operator or a node's tags ask for it.

    Thresholds count connections (0 = none); `tunnel` is for method tunnel (None = ipip); `check` None = the service's.
    `drain_s` is not None while an operator's DELETE drains it: weight 0, out when no connection is active, after that
    many seconds at the latest. `managed_by`: the file that made it (changes.py of the web room), "" = none.
    """

    name: str
    address: str
    port: int
    weight: int = 1
    method: ForwardingMethod = ForwardingMethod.ROUTE
    upper_threshold: int = 0
    lower_threshold: int = 0
    tunnel: Tunnel | None = None
    tier: Tier = Tier.PRIMARY
    check: CheckSpec | None = None
    drain_s: float | None = None
    managed_by: str = ""
    key: DestinationKey = field(init=False, repr=False, compare=False)
    """What tells it apart from the service's other destinations in the kernel."""

    def __post_init__(self) -> None:
        """The key is made once: mappings of thousands of destinations are looked into by it."""
        object.__setattr__(self, "key", (self.address, self.port))


class Announce(Enum):
    """When a service's VIP stands on the interface: always, or only while some destination can serve."""

    ALWAYS = "always"
    WHEN_USABLE = "when-usable"


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual service that operators asked for, with the destinations they named themselves.

    `vip_managed` False: the address is another's affair (keepalived's), never added, announced or removed by us. `check`
    None: a TCP connect for destinations that Serf brings, none for operators'. `drain_s`: as a destination's, for the
    whole service. `excluded` holds names of destinations found by Serf that an operator deleted; they stay out until
    added by hand. `revision` is that of the commit that changed it last.
    """

    name: str
    key: ServiceKey
    scheduler: str = "rr"
    persistence_s: int = 0
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    flags: ServiceFlags = ServiceFlags.NONE
    netmask: int | None = None
    persistence_engine: str | None = None
    vip_managed: bool = True
    announce: Announce = Announce.ALWAYS
    check: CheckSpec | None = None
    drain_s: float | None = None
    managed_by: str = ""
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Intent:
    """Everything that operators want, durable; `revision` counts the commits that made it.

    `timeouts`: the kernel's connection timeouts, 0 = as they are. `ranges`: networks that VIPs are allocated from.
    """

    services: Mapping[str, Service] = field(default_factory=dict)
    revision: int = 0
    timeouts: Timeouts = Timeouts()
    ranges: tuple[str, ...] = ()


# Nodes: what Serf shows of the real servers.


class NodeStatus(Enum):
    """Serf's word for a member; `REMEMBERED`: known from before our own restart, not seen in a list since; `UNSEEN`: not
    known, so no node has it. nodes.py says how one becomes another."""

    UNSEEN = "unseen"
    ALIVE = "alive"
    LEAVING = "leaving"
    LEFT = "left"
    FAILED = "failed"
    REMEMBERED = "remembered"


class OfferState(Enum):
    """What a server says of a service of its own. `DRAIN`: no new connections, those there are go on; `MAINT`: none at all;
    `DOWN`: its own check of it fails."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Offer:
    """One service that a node's tags offer (tags.py).

    `checked`: the balancer may check it, too. `tunnel`: for method tunnel, None = ipip. `routes_back`: for method nat, the
    server's answers pass the balancer, so that nothing need be masqueraded. `address`: where it is offered, None = at the
    node's own address; another one is believed of few nodes (admission.py).
    """

    service: str
    port: int
    method: ForwardingMethod = ForwardingMethod.NAT
    weight: int = 1
    checked: bool = True
    tunnel: Tunnel | None = None
    tier: Tier = Tier.PRIMARY
    state: OfferState = OfferState.READY
    routes_back: bool = False
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A real server that offers services; `since_s` is when its present status was first seen."""

    name: str
    address: str
    status: NodeStatus
    offers: Mapping[str, Offer] = field(default_factory=dict)
    since_s: float = 0.0
    missing_s: float | None = None
    """Since when Serf's list leaves it out, None while it does not."""
    problems: tuple[str, ...] = ()
    withdrawn: Mapping[str, float] = field(default_factory=dict)
    """Services that get no new connections by its own word, with the time: dropped from its tags, or not ready."""
    told: object = field(default=None, compare=False, repr=False)
    """The row of the list that all this was read from, to know it again."""

    @property
    def missing(self) -> bool:
        """Whether Serf's list leaves it out."""
        return self.missing_s is not None


# Host: what must be true of the machine besides IPVS.


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Connections of this service to this real server leave with the balancer's own address (method nat)."""

    protocol: Protocol
    vip: str
    vip_port: int
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class HostWanted:
    """The VIPs on the interface, the masquerade rules and the sysctl switches that the target needs."""

    vips: frozenset[str] = frozenset()
    masquerades: frozenset[Masquerade] = frozenset()
    foreign: bool = False
    """Services that are not ours are in the kernel too: what is namespace-wide concerns them."""
    paths: frozenset[Path] = frozenset()
    """The answers of path checks on these must be let in."""
    withdrawn: bool = False
    """None of the VIPs is to stand on the interface for now; everything else is."""

    @property
    def standing(self) -> frozenset[str]:
        """The VIPs to have on the interface now."""
        return frozenset() if self.withdrawn else self.vips


@dataclass(frozen=True, slots=True)
class HostSeen:
    """What the host has of it: VIPs that are ours and there, external ones (already on the host), and what failed."""

    vips: frozenset[str] = frozenset()
    external: frozenset[str] = frozenset()
    masquerades: frozenset[Masquerade] = frozenset()
    failures: Mapping[str, str] = field(default_factory=dict)
    """Key `vip 10.0.0.1`, `nat`, `sysctl net.ipv4.ip_forward` ...: why it could not be made so."""
    warnings: tuple[str, ...] = ()
    """What stands in the way of traffic and is not ours to change (the FORWARD policy), or concerns others too."""
    paths: frozenset[Path] = frozenset()
    """Those whose answers can come in."""
    no_path: Mapping[Path, str] = field(default_factory=dict)
    """Those whose answers cannot, and why: they are not to be checked."""
    settled: bool = True
    """The last wish was worked off (with or without failures)."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Since the start: address events heeded, and others' hands undone."""
    taken: frozenset[str] = frozenset()
    """VIPs of ours that somebody had taken away, and that were put back by this look."""
