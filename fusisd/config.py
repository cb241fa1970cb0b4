"""The daemon's command line, and the file that it may name, as one frozen value.

Does not: look at the machine (daemon.py does).
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from fusisd import settings
from fusisd.admission import DESTINATIONS, PRIVATE, SERVICES, Network, Policy, network
from fusisd.errors import Invalid, StartupError
from fusisd.logs import FORMATS

PORT = 8000
PATH_MARKS = range(0x46550000, 0x46560000)
"""Where nobody else's marks are likely: others use single bits of them, or small numbers."""
SERF_MODES = ("managed", "external", "off")
RELOADED = frozenset({"log_level", "log_format", "policy"})
"""The fields that SIGHUP brings into force; the others need a restart, which moves no traffic."""


@dataclass(frozen=True, slots=True)
class Config:
    """How fusisd was asked to run. `listen` empty: the interface's own addresses and loopback, port 8000."""

    iface: str
    listen: tuple[tuple[str, int], ...]
    state_dir: Path
    socket: Path
    serf: str
    serf_rpc: tuple[str, int]
    serf_bind_port: int
    sysctls: bool
    dry_run: bool
    allow_plaintext_writes: bool
    log_level: str
    log_format: str = "text"
    serf_rpc_key: Path | None = None
    policy: Policy = Policy()
    cleanup: bool = False
    recover_store: bool = False
    path_marks: range = PATH_MARKS
    tls: tuple[Path, Path] | None = None
    """The certificate's chain and key."""
    private: bool = False
    host_names: frozenset[str] = frozenset()
    trusted_proxies: tuple[Network, ...] = ()
    check_only: bool = False
    serf_join: tuple[str, ...] = ()
    """Other balancers, that the managed agent joins."""
    vip_iface: str = ""
    """Where VIPs are put; never empty but in a dry run: `iface` when nothing else was said."""

    def differing(self, other: Config) -> frozenset[str]:
        """The fields in which another configuration differs."""
        return frozenset(field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name))


def parse(arguments: list[str] | None = None) -> Config:
    """The configuration; argparse ends the process (status 2) on a wrong line, StartupError on a wrong value."""
    options = settings.with_file(_parser(), sys.argv[1:] if arguments is None else arguments)
    if not options.iface and not options.dry_run and not options.cleanup:
        raise StartupError("which interface do clients come in on? Give --iface (see `ip -brief address`)", 2)
    mode, _, where = options.serf.partition(" ")
    if mode not in SERF_MODES and ":" in mode:
        mode, where = "external", mode
    if mode not in SERF_MODES:
        raise StartupError(f"--serf {options.serf!r} must be managed, off, or ADDRESS:PORT of a running agent's RPC", 2)
    rpc = endpoint(where, "--serf") if where else ("127.0.0.1", options.serf_rpc_port)
    return Config(
        iface=options.iface or "",
        listen=_listen(options.listen),
        state_dir=options.state_dir,
        socket=options.socket,
        serf="off" if options.dry_run and mode == "managed" else mode,
        serf_rpc=rpc,
        serf_bind_port=options.serf_bind_port,
        sysctls=not options.no_sysctl,
        dry_run=options.dry_run,
        allow_plaintext_writes=options.allow_plaintext_writes,
        log_level=options.log_level,
        serf_rpc_key=options.serf_rpc_key_file,
        policy=_policy(options),
        log_format=options.log_format,
        cleanup=options.cleanup == "cleanup",
        recover_store=options.recover_store,
        path_marks=_marks(options.path_marks),
        tls=_tls(options),
        private=options.private,
        host_names=_host_names(options.host_name),
        trusted_proxies=_networks(options.trusted_proxy, "--trusted-proxy"),
        check_only=options.check_config,
        serf_join=tuple(_joined(text) for text in options.serf_join),
        vip_iface=options.vip_iface or options.iface or "",
    )


def _listen(texts: list[str]) -> tuple[tuple[str, int], ...]:
    found = tuple(endpoint(text, "--listen") for text in texts)
    for host, port in found:
        if not _is_address(host) and host != "localhost":
            raise StartupError(f"--listen {host}:{port}: give an address of this machine instead of {host}", 2)
    if twins := [f"{host}:{port}" for (host, port), number in Counter(found).items() if number > 1 and port]:
        raise StartupError(f"--listen {twins[0]} is given twice", 2)
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _joined(text: str) -> str:
    if not _is_address(text):
        raise StartupError(f"--serf-join {text!r} must be another balancer's address", 2)
    return text


def _host_names(texts: list[str]) -> frozenset[str]:
    for text in texts:
        if not _NAME.fullmatch(text):
            raise StartupError(f"--host-name {text!r} must be a name alone, as lb.example.com: no scheme, no port", 2)
    return frozenset(text.lower().removesuffix(".") for text in texts)


_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


def _port(text: str) -> int:
    """A port. Raises ValueError, which argparse words."""
    found = int(text)
    if not 1 <= found <= 65535:
        raise ValueError(text)
    return found


_port.__name__ = "port"  # argparse's word for what it is not


def _tls(options: argparse.Namespace) -> tuple[Path, Path] | None:
    if options.tls_cert is None and options.tls_key is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise StartupError("--tls-cert and --tls-key go together (one file may hold both: name it twice)", 2)
    return options.tls_cert, options.tls_key


def _networks(texts: list[str], option: str) -> tuple[Network, ...]:
    try:
        return tuple(network(text) for text in texts)
    except Invalid as error:
        raise StartupError(f"{option}: {error}", 2) from None


def _marks(text: str) -> range:
    """The range of `FROM-TO`, decimal or 0x..., both ends in; the default of "". Raises StartupError."""
    if not text:
        return PATH_MARKS
    first, _, last = text.partition("-")
    try:
        marks = range(int(first, 0), int(last, 0) + 1)
    except ValueError:
        marks = range(0)
    if not marks or marks.start < 1 or marks.stop > 2**32:
        raise StartupError(f"--path-marks {text!r} must be FROM-TO within 1 to {2**32 - 1}, as 0x1000-0x1fff", 2)
    return marks


def _policy(options: argparse.Namespace) -> Policy:
    allow = _networks(options.serf_allow, "--serf-allow")
    claims = _networks(options.allow_claims, "--allow-claims")
    if options.serf_services < 0 or options.serf_destinations < 0:
        raise StartupError("--serf-services and --serf-destinations must not be negative", 2)
    return Policy(allow or PRIVATE, claims, options.serf_services, options.serf_destinations)


def endpoint(text: str, option: str) -> tuple[str, int]:
    """The address and port of `ADDRESS:PORT` or `[ADDRESS]:PORT`. Raises StartupError."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not _is_host(host) or not colon or not port.isdecimal() or not port.isascii() or int(port) > 65535:
        raise StartupError(f"{option} {text!r} must be ADDRESS:PORT, as 127.0.0.1:8000 or [::1]:8000", 2)
    return host, int(port)


def _is_host(text: str) -> bool:
    """Whether it can be looked up at all."""
    try:
        return b"\0" not in text.encode("idna")
    except UnicodeError:  # an empty label, or one of more than 63 letters
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusisd",
        description="Fusis: a layer-4 load balancer on IPVS that finds its real servers by Serf.",
        epilog="example: fusisd --iface eth0",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="a TOML file with these settings, see docs/fusisd.toml (SIGHUP: again)")
    add("--check-config", action="store_true", help="say whether command line and file are right, and end")
    add("cleanup", nargs="?", choices=("cleanup",),
        help="undo on this machine what a stopped fusisd did: services, VIPs, NAT rules, sysctls; then end")  # fmt: skip
    add("--iface", metavar="NAME", help="the interface that clients come in on; VIPs are put there")
    add("--vip-iface", metavar="NAME",
        help="put VIPs there instead, lo for anycast: they are neither announced nor asked about on the wire")  # fmt: skip
    add("--listen", metavar="ADDRESS:PORT", action="append", default=[],
        help=f"serve HTTP here, repeatable (default: port {PORT} of the interface's addresses and of loopback)")  # fmt: skip
    add("--socket", type=Path, default=Path("/run/fusisd/fusisd.sock"), metavar="PATH",
        help="Unix socket for fusisctl (default %(default)s)")  # fmt: skip
    add("--state-dir", type=Path, default=Path("/var/lib/fusisd"), metavar="DIR",
        help="where wishes, ownership, token and keys are kept (default %(default)s)")  # fmt: skip
    add("--serf", default="managed", metavar="MODE",
        help="managed (default): start and keep a serf agent; ADDRESS:PORT: use that agent's RPC; off")  # fmt: skip
    _add_serf(add)
    _add_access(add)
    add("--no-sysctl", action="store_true", help="change no sysctl (docs/architecture.md lists those needed)")
    add("--path-marks", default="", metavar="FROM-TO",
        help="firewall marks for path checks, one for each server by route or tunnel "
        f"(default {PATH_MARKS.start:#x}-{PATH_MARKS.stop - 1:#x})")  # fmt: skip
    add("--recover-store", action="store_true",
        help="set a damaged store aside and start empty; the kernel's services stay, as foreign ones")  # fmt: skip
    add("--dry-run", action="store_true",
        help="everything but the kernel: IPVS and addresses in memory; Serf only when --serf is ADDRESS:PORT")  # fmt: skip
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="(default %(default)s)")
    add("--log-format", default="text", choices=FORMATS, help="(default %(default)s)")
    return parser


def _add_access(add: Callable[..., object]) -> None:
    """Who may ask, and how."""
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM) for HTTPS, on the same ports as HTTP")
    add("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    add("--private", action="store_true", help="reads need the token, too; /healthz and /readyz do not")
    add("--allow-plaintext-writes", action="store_true",
        help="accept changes over plain HTTP from other hosts (the token can be read on the wire)")  # fmt: skip
    add("--host-name", metavar="NAME", action="append", default=[],
        help="a name that clients may ask by, repeatable (addresses and localhost always can)")  # fmt: skip
    add("--trusted-proxy", metavar="NETWORK", action="append", default=[],
        help="peers from here are many clients: no limit of connections for each, repeatable")  # fmt: skip


def _add_serf(add: Callable[..., object]) -> None:
    """Where Serf is, and who may join by it."""
    add("--serf-rpc-port", type=_port, default=7373, metavar="PORT",
        help="RPC port of the managed agent, on loopback (default %(default)s)")  # fmt: skip
    add("--serf-bind-port", type=_port, default=7946, metavar="PORT",
        help="gossip port of the managed agent (default %(default)s)")  # fmt: skip
    add("--serf-join", metavar="ADDRESS", action="append", default=[],
        help="another balancer, whose cluster the managed agent joins; repeatable")  # fmt: skip
    add("--serf-rpc-key-file", type=Path, metavar="FILE",
        help="the rpc_auth key of the agent whose ADDRESS:PORT is given, mode 0600")  # fmt: skip
    add("--serf-allow", metavar="NETWORK", action="append", default=[],
        help="servers that Serf shows may come from here, repeatable (default: private networks)")  # fmt: skip
    add("--allow-claims", metavar="NETWORK", action="append", default=[],
        help="servers from here may offer other addresses than their own, repeatable (default: none)")  # fmt: skip
    add("--serf-services", type=int, default=SERVICES, metavar="N",
        help="how many services one server may offer by Serf (default %(default)s)")  # fmt: skip
    add("--serf-destinations", type=int, default=DESTINATIONS, metavar="N",
        help="how many destinations Serf may bring into one service (default %(default)s)")  # fmt: skip
