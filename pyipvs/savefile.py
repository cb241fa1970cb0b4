"""The text that `ipvsadm --save -n` writes and `ipvsadm --restore` reads, as values of model.py.

Read is what ipvsadm 1.31 reads in lines of -A and -a, by the rules of popt(3): `-t X`, `-tX`, `-t=X`,
`--tcp-service X`, `--tcp-service=X`, and short options in one word (`-At X`). Written is what ipvsadm 1.31 writes
(print_service_entry in ipvsadm.c), but for what its own --restore would then lose or refuse; of these we write all:
  - thresholds (-x, -y), which `ipvsadm -S` leaves out;
  - firewall marks from 2^31, which it writes as negative numbers (both are read here);
  - flag-3 of the schedulers sh and mh, for which it writes -b without a value;
  - both tunnel checksum flags at once, for which neither its --save nor its --restore has a form.
Left out is what has no effect: the netmask of a service that is not persistent, -o but of UDP, and of a tunnel the checksum
flags with ipip and the remote one with gre.
Does not: read or write a file or the kernel's table, or look host names up.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from pyipvs.model import (
    Destination,
    Family,
    ForwardingMethod,
    Protocol,
    Service,
    ServiceFlags,
    ServiceKey,
    Tunnel,
    TunnelType,
    check_pair,
    family_of,
    flags_in_effect,
)

_PERSISTENCE_S = "360"  # IPVS_SVC_PERSISTENT_TIMEOUT in libipvs.h, and measured; the manual says 300
_QUOTING = frozenset("'\"\\#")  # without them str.split takes a line apart as shlex would, many times faster
_MAX_DIGITS = 20  # more than any value has, fewer than what int() takes long for or refuses


class SaveFileError(ValueError):
    """A line that cannot be restored: `line_number` (from 1), `line`, and `reason`, which says what to do."""

    def __init__(self, line_number: int, line: str, reason: str) -> None:
        super().__init__(line_number, line, reason)
        self.line_number, self.line, self.reason = line_number, line, reason

    def __str__(self) -> str:
        return f"line {self.line_number}: {self.reason}: {self.line!r}"


class _Option(NamedTuple):
    """What an option is. `slot`: of options with the same one, a line has only one, once."""

    name: str
    slot: str
    command: str
    value: bool = False
    default: str | None = None  # what a missing value means; None = there must be one


_ADD_SERVICE, _ADD_SERVER, _BOTH = "-A", "-a", "-A and -a"
_TABLE = {
    "-A --add-service": _Option("-A", "command", _BOTH),
    "-a --add-server": _Option("-a", "command", _BOTH),
    "-t --tcp-service": _Option("-t", "service", _BOTH, value=True),
    "-u --udp-service": _Option("-u", "service", _BOTH, value=True),
    "--sctp-service": _Option("--sctp-service", "service", _BOTH, value=True),
    "-f --fwmark-service": _Option("-f", "service", _BOTH, value=True),
    "-6 --ipv6": _Option("-6", "ipv6", _BOTH),
    "-s --scheduler": _Option("-s", "scheduler", _ADD_SERVICE, value=True),
    "-p --persistent": _Option("-p", "persistent", _ADD_SERVICE, value=True, default=_PERSISTENCE_S),
    "-M --netmask": _Option("-M", "netmask", _ADD_SERVICE, value=True),
    "-o --ops": _Option("-o", "ops", _ADD_SERVICE),
    "-b --sched-flags": _Option("-b", "sched-flags", _ADD_SERVICE, value=True),
    "--pe --pe-name": _Option("--pe", "pe", _ADD_SERVICE, value=True),
    "-r --real-server": _Option("-r", "real-server", _ADD_SERVER, value=True),
    "-g --gatewaying": _Option("-g", "method", _ADD_SERVER),
    "-i --ipip": _Option("-i", "method", _ADD_SERVER),
    "-m --masquerading": _Option("-m", "method", _ADD_SERVER),
    "-w --weight": _Option("-w", "weight", _ADD_SERVER, value=True),
    "-x --u-threshold": _Option("-x", "u-threshold", _ADD_SERVER, value=True),
    "-y --l-threshold": _Option("-y", "l-threshold", _ADD_SERVER, value=True),
    "--tun-type": _Option("--tun-type", "tun-type", _ADD_SERVER, value=True),
    "--tun-port": _Option("--tun-port", "tun-port", _ADD_SERVER, value=True),
    "--tun-nocsum": _Option("--tun-nocsum", "tun-nocsum", _ADD_SERVER),
    "--tun-csum": _Option("--tun-csum", "tun-csum", _ADD_SERVER),
    "--tun-remcsum": _Option("--tun-remcsum", "tun-remcsum", _ADD_SERVER),
}
_OPTIONS = {spelled: option for names, option in _TABLE.items() for spelled in names.split()}
_PROTOCOLS = {"-t": Protocol.TCP, "-u": Protocol.UDP, "--sctp-service": Protocol.SCTP}
_METHODS = {"-g": ForwardingMethod.ROUTE, "-i": ForwardingMethod.TUNNEL, "-m": ForwardingMethod.NAT}
_TUNNEL_TYPES = {str(kind): kind for kind in TunnelType}
_Given = dict[str, tuple[str, str]]  # of each slot: which option, and its value ("" for one that takes none)
_Parsed = dict[ServiceKey, tuple[Service, dict[tuple[str, int], Destination]]]

_FLAGS = {  # and the scheduler that alone has the flag (parse_sched_flags in ipvsadm.c)
    "flag-1": (ServiceFlags.SCHED1, ""),
    "flag-2": (ServiceFlags.SCHED2, ""),
    "flag-3": (ServiceFlags.SCHED3, ""),
    "sh-fallback": (ServiceFlags.SH_FALLBACK, "sh"),
    "sh-port": (ServiceFlags.SH_PORT, "sh"),
    "mh-fallback": (ServiceFlags.SH_FALLBACK, "mh"),
    "mh-port": (ServiceFlags.SH_PORT, "mh"),
}


def parse(text: str) -> list[tuple[Service, list[Destination]]]:
    """The services of `text` with their destinations, both in its order; addresses are canonical.

    Defaults are ipvsadm's: scheduler wlc, method route, weight 1, persistence 360 s (-p without a value), and
    without a port that of the service, or 0 for a service. As in ipvsadm, the port given with method route or
    tunnel counts only for a firewall mark: otherwise it is the service's. Port names are the system's
    (/etc/services). Raises SaveFileError for the first line that cannot be restored.
    """
    table: _Parsed = {}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            _add_line(table, line)
        except ValueError as error:
            raise SaveFileError(number, line.strip(), str(error)) from None
    return [(service, list(destinations.values())) for service, destinations in table.values()]


def _add_line(table: _Parsed, line: str) -> None:
    words = shlex.split(line, comments=True) if _QUOTING.intersection(line) else line.split()
    if not words:
        return
    # config_stream_read drops the program's name, so that lines of a shell script can be restored
    command, given = _given(words[1:] if words[0] == "ipvsadm" else words)
    key = _key(*given["service"], "ipv6" in given)
    if command == _ADD_SERVICE:
        if key in table:
            raise ValueError(f"service {key} is there already: remove one of its -A lines")
        table[key] = (_service(key, given), {})
        return
    if key not in table:
        raise ValueError(f"service {key} is not there yet: its -A line must come first")
    destination, destinations = _destination(key, given), table[key][1]
    if destination.key in destinations:
        raise ValueError(f"service {key} has destination {destination} already: remove one of its -a lines")
    destinations[destination.key] = destination


def _given(words: list[str]) -> tuple[str, _Given]:
    """The command of a line, which ipvsadm wants first, and its options."""
    given: _Given = {}
    command = ""
    for spelled, option, value in _options(words):
        if not command and option.slot != "command":
            raise ValueError(f"{spelled} comes before the command: begin the line with -A or -a")
        command = command or option.name
        if option.command not in (command, _BOTH):
            raise ValueError(f"{spelled} belongs to {option.command} lines: remove it")
        if option.slot in given:
            raise ValueError(f"{spelled} is a second {option.slot} option: remove one")
        given[option.slot] = (option.name, value)
    if not command:
        raise ValueError("there is no command: add -A or -a with its options")
    if "service" not in given:
        raise ValueError("the service is missing: add -t, -u, --sctp-service or -f")
    if command == _ADD_SERVER and "real-server" not in given:
        raise ValueError("the real server is missing: add -r")
    return command, given


def _options(words: list[str]) -> Iterator[tuple[str, _Option, str]]:
    """Each option as it was spelled, and its value, by the rules of popt(3)."""
    waiting = words[::-1]
    while waiting:
        word = waiting.pop()
        if not word.startswith("-") or word == "-":
            raise ValueError(f"{word!r} is no option and belongs to none: remove it")
        long = word.startswith("--")
        spelled, _, rest = word.partition("=") if long else (word[:2], "", word[2:])
        option = _option(spelled)
        if option.value:
            joined = rest if long else rest.removeprefix("=")
            yield spelled, option, joined if word != spelled else _next_word(spelled, option, waiting)
            continue
        if long and word != spelled:
            raise ValueError(f"{spelled} takes no value: remove it")
        if rest:
            _option(f"-{rest[0]}")  # only short options may share a word: it is read next
            waiting.append(f"-{rest}")
        yield spelled, option, ""


def _option(spelled: str) -> _Option:
    option = _OPTIONS.get(spelled)
    if option is None:
        raise ValueError(f"{spelled} is not in a saved table, only -A and -a and their options: remove or correct it")
    return option


def _next_word(spelled: str, option: _Option, waiting: list[str]) -> str:
    """The value of an option that nothing is joined to, taken out of `waiting` unless it is left to the default."""
    if option.default is not None and (not waiting or waiting[-1].startswith("-")):
        return option.default
    if not waiting:
        raise ValueError(f"{spelled} needs a value")
    return waiting.pop()


@lru_cache(maxsize=64)  # lines of a service follow each other
def _key(kind: str, text: str, ipv6: bool) -> ServiceKey:
    if kind == "-f":
        return ServiceKey.fwmark(_mark(text), Family.INET6 if ipv6 else Family.INET)
    if ipv6:
        raise ValueError("-6 is for -f only: remove it, the address says it")
    address, port = _split(text, _PROTOCOLS[kind])
    return ServiceKey(_PROTOCOLS[kind], address, port or 0)


def _mark(text: str) -> int:
    """A firewall mark; `ipvsadm -S` writes one from 2^31 as what is left after subtracting 2^32 ("%d")."""
    if text.startswith("-"):
        below = _number(text[1:], "firewall mark")
        if below <= 2**31:
            return 2**32 - below
    return _number(text, "firewall mark")


def _split(text: str, protocol: Protocol) -> tuple[str, int | None]:
    """The address, and the port where there is one, of ADDRESS[:PORT] or [ADDRESS]:PORT."""
    bracketed = text.startswith("[")
    if bracketed:
        address, colon, port = text[1:].partition("]:")
    else:
        address, colon, port = (text, "", "") if text.count(":") > 1 else text.partition(":")
    try:
        socket.inet_pton(Family.INET6 if bracketed else family_of(address), address)
    except (OSError, ValueError):
        hint = "host names are not looked up: write the file with `ipvsadm -Sn`"
        raise ValueError(f"{address!r} is not an IPv4 or IPv6 address, and {hint}") from None
    return address, _port(port, protocol) if colon else None


@lru_cache(maxsize=256)  # getservbyname reads a file each time
def _port(text: str, protocol: Protocol) -> int:
    if text.isdigit():
        return _number(text, "port")
    try:
        return socket.getservbyname(text, str(protocol))
    except (OSError, ValueError):
        hint = "write the file with `ipvsadm -Sn`"
        raise ValueError(f"port {text!r} is no number and no {protocol} service in /etc/services: {hint}") from None


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise ValueError(f"{what} {text!r} must be a whole number")
    return int(text)


def _number_of(given: _Given, slot: str, default: int) -> int:
    return _number(given[slot][1], slot) if slot in given else default


def _service(key: ServiceKey, given: _Given) -> Service:
    scheduler = given["scheduler"][1] if "scheduler" in given else "wlc"
    netmask = _netmask(given["netmask"][1], key.family) if "netmask" in given else None
    engine = given["pe"][1] if "pe" in given else None
    return Service(key, scheduler, _flags(given, scheduler), _persistence_s(given), netmask, engine)


def _flags(given: _Given, scheduler: str) -> ServiceFlags:
    flags = ServiceFlags.ONE_PACKET if "ops" in given else ServiceFlags.NONE
    for name in given["sched-flags"][1].split(",") if "sched-flags" in given else ():
        if name not in _FLAGS:
            raise ValueError(f"scheduler flag {name!r} must be one of {', '.join(_FLAGS)}")
        flag, only_of = _FLAGS[name]
        if only_of not in ("", scheduler):
            raise ValueError(f"scheduler flag {name} is of scheduler {only_of}, not {scheduler}: write flag-1 to flag-3")
        flags |= flag
    return flags


def _persistence_s(given: _Given) -> int:
    seconds = _number_of(given, "persistent", 0)
    if "persistent" in given and not seconds:
        raise ValueError("-p must be at least 1 second: leave it out for a service that is not persistent")
    return seconds


def _netmask(text: str, family: Family) -> int:
    """The prefix length of a dotted IPv4 netmask; IPv6 ones are written as prefix length (print_service_entry)."""
    if family is Family.INET6:
        return _number(text, "IPv6 netmask (a prefix length)")
    try:
        bits = f"{int.from_bytes(socket.inet_pton(Family.INET, text)):032b}"
    except (OSError, ValueError):
        bits = "01"
    if "01" in bits:
        raise ValueError(f"IPv4 netmask {text!r} must be like 255.255.255.0")
    return bits.count("1")


def _destination(key: ServiceKey, given: _Given) -> Destination:
    address, port = _split(given["real-server"][1], key.protocol or Protocol.TCP)
    method = _METHODS[given["method"][0]] if "method" in given else ForwardingMethod.ROUTE
    if port is None or (method is not ForwardingMethod.NAT and key.mark is None):
        port = key.port or 0  # process_options in ipvsadm.c does it, and says nothing
    weight, upper = _number_of(given, "weight", 1), _number_of(given, "u-threshold", 0)
    lower = _number_of(given, "l-threshold", 0)
    destination = Destination(address, port, weight, method, upper, lower, _tunnel(given))
    check_pair(key, destination)
    return destination


def _tunnel(given: _Given) -> Tunnel | None:
    """None when no option says anything about it."""
    if not any(slot.startswith("tun-") for slot in given):
        return None
    flags = ("tun-csum" in given) | ("tun-remcsum" in given) << 1  # IP_VS_TUNNEL_ENCAP_FLAG_*
    if flags and "tun-nocsum" in given:
        raise ValueError("--tun-nocsum contradicts --tun-csum and --tun-remcsum: remove one")
    kind = given["tun-type"][1] if "tun-type" in given else "ipip"
    if kind not in _TUNNEL_TYPES:
        raise ValueError(f"tunnel type {kind!r} must be one of {', '.join(_TUNNEL_TYPES)}")
    return Tunnel(_TUNNEL_TYPES[kind], _number_of(given, "tun-port", 0), flags)


_PROTOCOL_OPTION = {protocol: option for option, protocol in _PROTOCOLS.items()}
_METHOD_OPTION = {method: option for option, method in _METHODS.items()} | {ForwardingMethod.LOCAL: "-g"}  # fwd_switch
_CSUM_OPTION = ("--tun-nocsum", "--tun-csum", "--tun-remcsum", "--tun-csum --tun-remcsum")


def render(services: Iterable[tuple[Service, Iterable[Destination]]]) -> str:
    """The lines that `ipvsadm -Sn` prints for this table, but for what it would lose (see the top); "" for none.

    Services are sorted by key, their destinations by address and port, so that equal tables give equal text.
    Raises ValueError for a protocol or forwarding method that ipvsadm has no option for.
    """
    lines = []
    for service, destinations in sorted(services, key=lambda pair: pair[0].key):
        name = _service_name(service.key)
        lines.append(_service_line(name, service))
        lines += [_destination_line(name, destination) for destination in sorted(destinations, key=_by_address)]
    return "".join(f"{line}\n" for line in lines)


def _by_address(destination: Destination) -> tuple[Family, bytes, int]:
    return (destination.family, destination.packed, destination.port)


def _service_name(key: ServiceKey) -> str:
    if key.mark is not None:
        return f"-f {key.mark} -6" if key.family is Family.INET6 else f"-f {key.mark}"
    if key.protocol not in _PROTOCOL_OPTION:
        raise ValueError(f"service {key}: ipvsadm has no option for protocol {key.protocol}")
    return f"{_PROTOCOL_OPTION[key.protocol]} {str(key).partition('/')[2]}"


def _service_line(name: str, service: Service) -> str:
    words = ["-A", name, "-s", service.scheduler]
    if service.persistence_s:
        words += ["-p", str(service.persistence_s), *_netmask_words(service)]
    if service.persistence_engine:
        words += ["--pe", service.persistence_engine]
    if ServiceFlags.ONE_PACKET in flags_in_effect(service.key, service.flags):
        words.append("-o")
    own = service.scheduler if service.scheduler in ("sh", "mh") else ""
    named = {flag: text for text, (flag, only_of) in _FLAGS.items() if only_of in ("", own)}  # the own ones come last
    flags = [text for flag, text in named.items() if flag in service.flags]
    return " ".join([*words, "-b", ",".join(flags)] if flags else words)


def _netmask_words(service: Service) -> list[str]:
    prefix = service.netmask or 0
    if service.key.family is Family.INET6:
        return [] if prefix == 128 else ["-M", str(prefix)]
    mask = (2**32 - 1 << 32 - prefix) & 2**32 - 1
    return [] if prefix == 32 else ["-M", socket.inet_ntop(Family.INET, mask.to_bytes(4))]


def _destination_line(name: str, destination: Destination) -> str:
    method = _METHOD_OPTION.get(destination.method)
    if method is None:
        raise ValueError(f"destination {destination}: ipvsadm has no option for method {destination.method}")
    words = ["-a", name, "-r", str(destination), method, "-w", str(destination.weight)]
    if destination.upper_threshold:
        words += ["-x", str(destination.upper_threshold)]
    if destination.lower_threshold:
        words += ["-y", str(destination.lower_threshold)]
    if destination.tunnel is not None:
        words += _tunnel_words(destination.tunnel)
    return " ".join(words)


def _tunnel_words(tunnel: Tunnel) -> list[str]:
    """print_tunnel_rule in ipvsadm.c."""
    if tunnel.type not in tuple(TunnelType):  # of another program's making
        return []
    words = ["--tun-type", str(tunnel.type)]
    if tunnel.type is TunnelType.GUE:
        return [*words, "--tun-port", str(tunnel.port), _CSUM_OPTION[tunnel.flags & 3]]
    return words if tunnel.type is TunnelType.IPIP else [*words, _CSUM_OPTION[tunnel.flags & 1]]
