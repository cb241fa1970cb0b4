"""What fusis-agent was told: the command line, a TOML file, or both, as one frozen value.

A file's keys are the options' names with `_` for `-`; services stand in tables `[service.NAME]`. What the command line says
counts before what the file says, and `--service` adds one service to the file's.
Does not: look at the machine, or at the balancer.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusisd import toml
from fusisd.agent.probe import Check, parse_check
from fusisd.errors import Invalid
from fusisd.fields import Read, list_of, read_object, seconds, text, text_as, truth, whole
from fusisd.model import MAX_WEIGHT, Offer, OfferState, Tier, checked_address, checked_name
from fusisd.tags import encode_all, parse_method
from pyipvs import ForwardingMethod, Tunnel

STATE_DIR = Path("/var/lib/fusis-agent")
API_PORT = 8000
DRAIN_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One service that this server offers. `vip` None: the balancer is asked. `route_back`: answers go by the balancer.
    `at`: the address on which it answers, None = the node's own; balancers believe another one of few nodes."""

    name: str
    port: int
    method: ForwardingMethod = ForwardingMethod.NAT
    tunnel: Tunnel | None = None
    weight: int = 1
    tier: Tier = Tier.PRIMARY
    vip: str | None = None
    route_back: bool = False
    at: str | None = None
    check: Check = Check()
    balancer_checks: bool = True

    @property
    def needs_vip(self) -> bool:
        """Whether this server must take the VIP's packets itself."""
        return self.method is not ForwardingMethod.NAT

    def offer(self, state: OfferState, weight: int) -> Offer:
        """What its tag says."""
        return Offer(self.name, self.port, self.method, weight, self.balancer_checks, self.tunnel, self.tier, state,
                     self.route_back, self.at)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """The whole. `iface` None: the interface of the route to the first balancer. `api_port`: where balancers answer HTTP."""

    balancers: tuple[str, ...]
    key_file: Path
    services: Mapping[str, ServiceConfig] = field(default_factory=dict)
    iface: str | None = None
    name: str = ""
    state_dir: Path = STATE_DIR
    rpc_port: int = 7373
    bind_port: int = 7946
    api_port: int = API_PORT
    drain_s: float = DRAIN_LIMIT_S
    prepare: bool = True

    @property
    def orders(self) -> Path:
        """The Unix socket on which the agent takes orders."""
        return self.state_dir / "orders.sock"

    def same_node(self, other: Config) -> bool:
        """Whether `other` can take over by a reload: nothing that Serf was started with differs."""
        mine, theirs = (replace(c, services={}, api_port=0, drain_s=0.0, prepare=True) for c in (self, other))
        return mine == theirs


def _addresses(value: object, place: str) -> tuple[str, ...]:
    """A list, or a text with commas."""
    rows = text(value, place).split(",") if isinstance(value, str) else value
    return list_of(_ADDRESS, 1, 16)(rows, place)


def _path(value: object, place: str) -> Path:
    return value if isinstance(value, Path) else Path(_word(value, place))


def _word(value: object, place: str) -> str:
    found = text(value, place)
    if not found or not found.isprintable():
        raise Invalid(f"{place} must be text without control characters", place)
    return found


def _method(value: object, place: str) -> tuple[ForwardingMethod, Tunnel | None]:
    try:
        return parse_method(text(value, place))
    except Invalid as error:
        raise Invalid(f"{place}: {error}", place) from None


_ADDRESS = text_as(checked_address)
_NAME = text_as(checked_name)
_SERVICE: dict[str, Read[Any]] = {
    "port": whole(1, 65535),
    "method": _method,
    "weight": whole(0, MAX_WEIGHT),
    "vip": _ADDRESS,
    "backup": truth,
    "route_back": truth,
    "at": _ADDRESS,
    "check": text_as(parse_check),
    "balancer_checks": truth,
}
_OPTIONS = {"method": "mode", "route_back": "route-back"}
_TOP: dict[str, Read[Any]] = {
    "balancer": _addresses,
    "key_file": _path,
    "iface": _word,
    "name": _NAME,
    "state_dir": _path,
    "rpc_port": whole(1, 65535),
    "bind_port": whole(1, 65535),
    "api_port": whole(1, 65535),
    "drain": seconds(0, 3600),
    "prepare": truth,
}


def read(line: argparse.Namespace) -> Config:
    """The configuration of this command line. Raises Invalid, naming file, key or option."""
    found, tables = _read_file(line.config)
    for key, value in vars(line).items():
        if key in _TOP and value is not None:
            found[key] = _TOP[key](value, f"--{key.replace('_', '-')}")
    services = {}
    for name, table in tables.items():
        try:
            services[_NAME(name, "service")] = _service(name, table, f"service.{name}.")
        except Invalid as error:
            raise Invalid(f"{line.config}: {error}", error.field) from None
    if line.service is not None:
        services[line.service] = _service(_NAME(line.service, "--service"), _asked(line), "--")
    for key, option in (("balancer", "--balancer"), ("key_file", "--key-file")):
        if key not in found:
            raise Invalid(f"{option} is missing: `fusisctl join-command` on the balancer prints the whole line", key)
    if not services:
        raise Invalid("there is no service: give --service and --port, or a table [service.NAME] in the file", "service")
    return _whole(found, services)


def _whole(found: dict[str, Any], services: dict[str, ServiceConfig]) -> Config:
    """Checked together. Raises Invalid."""
    balancers = found["balancer"]
    for service in services.values():
        if service.route_back and len(balancers) != 1:
            raise Invalid(f"service {service.name}: route_back needs one balancer, for answers take one way", "route_back")
    encode_all(service.offer(OfferState.MAINT, MAX_WEIGHT) for service in services.values())  # the longest that they become
    return Config(
        balancers=balancers,
        key_file=found["key_file"],
        services=services,
        iface=found.get("iface"),
        name=found.get("name") or _NAME(hostname(), "--name"),
        state_dir=found.get("state_dir", STATE_DIR),
        rpc_port=found.get("rpc_port", 7373),
        bind_port=found.get("bind_port", 7946),
        api_port=found.get("api_port", API_PORT),
        drain_s=found.get("drain", DRAIN_LIMIT_S),
        prepare=found.get("prepare", True),
    )


def _read_file(path: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the file says, its services' tables). Raises Invalid."""
    if path is None:
        return {}, {}
    try:
        document = toml.tables(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except Invalid as error:
        raise Invalid(f"{path}: {error}", error.field) from None
    tables = document.pop("service", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise Invalid(f"{path}: services are tables, as [service.web]", "service")
    try:
        return read_object(document, "", _TOP), tables
    except Invalid as error:
        raise Invalid(f"{path}: {error}", error.field) from None


def _asked(line: argparse.Namespace) -> dict[str, object]:
    """The service of the command line, in a file's words."""
    asked = {"port": line.port, "method": line.mode, "weight": line.weight, "vip": line.vip, "check": line.check}
    asked |= {"route_back": line.route_back or None, "backup": line.backup or None, "at": line.at}
    return {key: value for key, value in asked.items() if value is not None}


def _service(name: str, table: object, place: str) -> ServiceConfig:
    """A service's settings; `place` is what stands before a key's name in a complaint. Raises Invalid."""
    names = {key: f"{place}{key}" if place != "--" else f"--{_OPTIONS.get(key, key)}" for key in _SERVICE}
    found = read_object(table, place.strip(".-"), {key: _placed(reader, names[key]) for key, reader in _SERVICE.items()})
    if "port" not in found:
        raise Invalid(f"{names['port']} is missing", "port")
    method, tunnel = found.pop("method", (ForwardingMethod.NAT, None))
    tier = Tier.BACKUP if found.pop("backup", False) else Tier.PRIMARY
    service = ServiceConfig(name, method=method, tunnel=tunnel, tier=tier, **found)
    if service.route_back and service.needs_vip:
        raise Invalid(f"service {name}: route_back is for method nat; others answer clients directly", "route_back")
    if service.at is not None and (service.route_back or service.method is ForwardingMethod.TUNNEL):
        raise Invalid(f"service {name}: at is for method route, and nat without route_back; what a tunnel and route_back"
                      " need is made for the server's own address", "at")  # fmt: skip
    return service


def _placed(reader: Read[Any], place: str) -> Read[Any]:
    return lambda value, _: reader(value, place)


def hostname() -> str:
    """This machine's name, the default node name."""
    return socket.gethostname() or f"node-{os.getpid()}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command line that `read` reads."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="a TOML file with the same settings, and [service.NAME] tables")
    add("--balancer", metavar="IP[,IP]", help="the balancers' addresses")
    add("--key-file", type=Path, metavar="FILE", help="the cluster's encryption key (mode 0600)")
    add("--service", metavar="NAME", help="the service that this server offers")
    add("--port", type=int, help="the port on which it answers")
    add("--weight", type=int, help="its share, 0 to 65535 (default 1)")
    add("--mode", metavar="METHOD", help="forwarding method: nat (default), route, ipip (or tunnel), gue[:PORT], gre")
    add("--vip", metavar="IP", help="the service's VIP (default: the balancer is asked)")
    add("--at", metavar="IP", help="where the service answers (default: the node's own address; another one needs the"
        " balancer's --allow-claims)")  # fmt: skip
    add("--check", metavar="HOW", help="the local check: tcp (default), http:/path, http:PORT:/path, none")
    add("--backup", action="store_true", help="gets connections only while no primary server can serve")
    add("--route-back", action="store_true", help="method nat: answers go by the balancer, not masqueraded")
    add("--api-port", type=int, metavar="PORT", help=f"where the balancers answer HTTP (default {API_PORT})")
    add("--drain", type=float, metavar="SECONDS",
        help=f"how long connections may last when we leave (default {DRAIN_LIMIT_S:g})")  # fmt: skip
    add("--no-prepare", dest="prepare", action="store_false", default=None, help="change nothing on this server")
    add("--iface", metavar="NAME",
        help="interface of the address to offer (default: that of the route to the balancer)")  # fmt: skip
    add("--name", metavar="NODE", help="node name, one per server (default: the host's name)")
    add("--state-dir", type=Path, metavar="DIR", help=f"(default {STATE_DIR})")
    add("--rpc-port", type=int, metavar="PORT", help="Serf's RPC on loopback (default 7373)")
    add("--bind-port", type=int, metavar="PORT", help="Serf's gossip port (default 7946)")
