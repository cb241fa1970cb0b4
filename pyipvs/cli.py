"""The command `pyipvs`: its command line, and errors as one line and an exit status.

Status: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C; of `plan`, as of diff(1): 0 nothing to do, 1 changes, 2 trouble.
Does not: read or change the table (commands.py does).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from pyipvs import commands
from pyipvs.changes import BatchError
from pyipvs.client import IPVS
from pyipvs.daemons import DaemonState
from pyipvs.errors import DecodeError
from pyipvs.model import ForwardingMethod, ServiceFlags, TunnelType
from pyipvs.report import FLAG_WORDS
from pyipvs.top import SORTS

_SERVICE = "tcp/10.0.0.1:80, udp/[fd00::1]:53, sctp/..., fwmark/7 or fwmark6/7"
_FILE = "as `ipvsadm -Sn` and `pyipvs save` write it; - is stdin"
_METHODS = [str(method) for method in (ForwardingMethod.NAT, ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL)]
_TUNNEL_FLAGS = {"none": 0, "csum": 1, "remcsum": 2}
_FAILED, _USAGE, _INTERRUPTED, _PIPE_CLOSED = 1, 2, 130, 141
_Run = Callable[[commands.Opener, argparse.Namespace], int]


def main(arguments: list[str] | None = None, open_ipvs: Callable[[str | None], IPVS] = IPVS) -> int:
    """Run pyipvs with this command line (None: the process's own); the exit status.

    `open_ipvs` makes the handle on the network namespace of that name.
    """
    failed = _FAILED
    try:
        options = _parser().parse_args(arguments)
        failed = options.failed
        status: int = options.run(lambda: open_ipvs(options.netns), options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return _PIPE_CLOSED
    except (OSError, ValueError) as error:
        for line in _told(error):
            print(f"pyipvs: {line}", file=sys.stderr)
        return _USAGE if isinstance(error, ValueError) and not isinstance(error, DecodeError) else failed
    return status


def _told(error: OSError | ValueError) -> list[str]:
    """An error in lines."""
    if isinstance(error, BatchError):
        count = len(error.failures)
        return [*map(str, error.failures), f"{count} of {error.count} changes failed; the others are done"]
    if isinstance(error, OSError) and error.filename is not None:
        return [f"{error.filename}: {error.strerror}"]
    return [str(error)]


class _Parser(argparse.ArgumentParser):
    """Whose errors are told like all others."""

    def error(self, message: str) -> NoReturn:
        raise commands.UsageError(f"{message}; see `{self.prog} --help`")


class _Group:
    """Commands below a parser."""

    def __init__(self, parser: _Parser) -> None:
        self._below: Any = parser.add_subparsers(metavar="COMMAND", required=True, dest=f"command of {parser.prog}")

    def add(self, name: str, run: _Run, text: str, *examples: str) -> _Parser:
        """One command. The first line of `text` is its help in the list of commands."""
        parser = self._parser(name, text, examples)
        parser.add_argument("--netns", default=argparse.SUPPRESS, metavar="NAME|PATH", help="in this network namespace")
        parser.set_defaults(run=run, failed=_FAILED)
        return parser

    def group(self, name: str, text: str, *examples: str) -> _Group:
        """A word with commands below it."""
        return _Group(self._parser(name, text, examples))

    def _parser(self, name: str, text: str, examples: tuple[str, ...]) -> _Parser:
        parser: _Parser = self._below.add_parser(name, help=text.partition("\n")[0], **_described(text, examples))
        return parser


def _described(text: str, examples: tuple[str, ...]) -> dict[str, Any]:
    return {
        "description": text,
        "epilog": "\n  ".join(["examples:", *examples]),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _parser() -> _Parser:
    examples = (
        "pyipvs add service tcp/10.0.0.1:80 --scheduler wrr",
        "pyipvs add destination tcp/10.0.0.1:80 10.0.0.2:80 --method route --weight 5",
        "pyipvs list --stats",
        "pyipvs --netns lb1 top",
    )
    parser = _Parser(prog="pyipvs", **_described("The Linux kernel's load balancer IPVS. Needs CAP_NET_ADMIN.", examples))
    parser.add_argument("--version", action="version", version=f"pyipvs {_version()}")
    parser.add_argument("--netns", metavar="NAME|PATH", help="the network namespace to work in (default: this one)")
    top_level = _Group(parser)
    for part in (_showing, _files, _adding, _editing, _deleting, _daemons, _others):
        part(top_level)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("pyipvs")
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout"


def _showing(group: _Group) -> None:
    listing = group.add(
        "list", commands.list_table, "show services and destinations in the columns of ipvsadm, with exact numbers",
        "pyipvs list", "pyipvs list --rate tcp/10.0.0.1:80", "pyipvs list --json | jq .services[].key",
        "pyipvs list --connections --netns lb1",
    )  # fmt: skip
    what = listing.add_mutually_exclusive_group()
    what.add_argument("--stats", action="store_true", help="connections, packets and bytes since the start or `zero`")
    what.add_argument("--rate", action="store_true", help="the same per second, as the kernel estimates it every 2 s")
    what.add_argument("--connections", action="store_true", help="each connection (needs no privilege)")
    listing.add_argument("--json", action="store_true", help="everything that is known of services, or of connections")
    listing.add_argument("-n", action="store_true", help=argparse.SUPPRESS)
    listing.add_argument("service", nargs="?", metavar="SERVICE", help=f"this one only: {_SERVICE}")
    top = group.add(
        "top", commands.show_top,
        "show rates live\n\nKeys: q quits; c, b, p, a, w, n sort. Without a terminal every interval is written out.",
        "pyipvs top", "pyipvs top --interval 5 --sort bytes", "pyipvs top --count 1 | head",
    )  # fmt: skip
    top.add_argument("--interval", type=_interval, default=1.0, metavar="S", help="seconds between readings (default 1)")
    top.add_argument("--sort", choices=list(SORTS), default="conns", help="what comes first (default conns)")
    top.add_argument("--count", type=_positive, metavar="N", help="end after this many intervals")


def _files(group: _Group) -> None:
    save = group.add("save", commands.save, "write the table as `ipvsadm -Sn` does", "pyipvs save table.ipvs", "pyipvs save")
    save.add_argument("file", nargs="?", default="-", metavar="FILE", help="where to (default: stdout)")
    text = "add what a file says to the table, as `ipvsadm -R` does\n\nWhat is there already is an error, and stays."
    restore = group.add(
        "restore", commands.restore, text, "pyipvs restore table.ipvs", "ipvsadm -Sn | pyipvs restore - --netns lb2"
    )
    restore.add_argument("file", metavar="FILE", help=_FILE)
    text = (
        "show what `apply` would change\n\nOne line each: + made, ~ changed, - deleted. "
        "Exit status as of diff: 0 nothing to do, 1 changes, 2 trouble."
    )
    plan = group.add("plan", commands.plan, text, "pyipvs plan table.ipvs", "ipvsadm -Sn | pyipvs plan - --netns lb2")
    plan.add_argument("file", metavar="FILE", help=_FILE)
    plan.set_defaults(failed=_USAGE)
    text = (
        "make the table equal to a file\n\nServices and destinations that the file does not have are deleted, "
        "so it asks first.\nWhat is the same stays as it is, with its connections and counters."
    )
    apply = group.add(
        "apply", commands.apply, text, "pyipvs apply table.ipvs", "ipvsadm -Sn | pyipvs apply - --yes --netns lb2"
    )
    apply.add_argument("file", metavar="FILE", help=_FILE)
    apply.add_argument("--yes", action="store_true", help="do not ask; needed without a terminal")


def _adding(group: _Group) -> None:
    below = group.group("add", "make a service or a destination", "pyipvs add service --help")
    service = below.add(
        "service", commands.add_service, "make a service",
        "pyipvs add service tcp/10.0.0.1:80 --scheduler rr", "pyipvs add service udp/[fd00::1]:53 --flags ops",
        "pyipvs add service fwmark/7 --persistent 300 --netmask 24",
    )  # fmt: skip
    _add_service_options(service)
    destination = below.add(
        "destination", commands.add_destination, "make a destination of a service",
        "pyipvs add destination tcp/10.0.0.1:80 10.0.0.2:8080 --weight 5",
        "pyipvs add destination tcp/10.0.0.1:80 [fd00::2]:80 --method tunnel --tunnel-type gue --tunnel-port 6080",
    )  # fmt: skip
    _add_destination_options(destination, " (default nat; ipvsadm's is route)")


def _editing(group: _Group) -> None:
    below = group.group("edit", "change a service or a destination", "pyipvs edit destination --help")
    service = below.add(
        "service", commands.edit_service, "change what is named of a service; the rest stays",
        "pyipvs edit service tcp/10.0.0.1:80 --scheduler wlc", "pyipvs edit service tcp/10.0.0.1:80 --persistent 0",
        "pyipvs edit service tcp/10.0.0.1:80 --flags none",
    )  # fmt: skip
    _add_service_options(service)
    destination = below.add(
        "destination", commands.edit_destination, "change what is named of a destination; the rest stays",
        "pyipvs edit destination tcp/10.0.0.1:80 10.0.0.2:80 --weight 0",
        "pyipvs edit destination fwmark/7 10.0.0.2:80 --upper 1000 --lower 800",
    )  # fmt: skip
    _add_destination_options(destination)


def _deleting(group: _Group) -> None:
    below = group.group("delete", "remove a service or a destination", "pyipvs delete service tcp/10.0.0.1:80")
    service = below.add(
        "service", commands.delete_service, "remove a service and its destinations", "pyipvs delete service fwmark/7"
    )
    _add_names(service)
    destination = below.add(
        "destination", commands.delete_destination,
        "remove a destination at once\n\nTo drain it, give it weight 0 first.",
        "pyipvs edit destination tcp/10.0.0.1:80 10.0.0.2:80 --weight 0",
        "pyipvs delete destination tcp/10.0.0.1:80 10.0.0.2:80",
    )  # fmt: skip
    _add_names(destination, "destination")


def _add_names(parser: _Parser, *more: str) -> None:
    parser.add_argument("service", metavar="SERVICE", help=_SERVICE)
    if more:
        parser.add_argument("destination", metavar="DESTINATION", help="10.0.0.2:80 or [fd00::2]:80")


def _add_service_options(parser: _Parser) -> None:
    _add_names(parser)
    add = parser.add_argument
    add("--scheduler", metavar="NAME", help="rr, wrr, lc, wlc (the default of a new one), sh, mh ...")
    add("--persistent", dest="persistence_s", type=int, metavar="S", help="seconds that a client stays where it is; 0 = off")
    add("--netmask", type=int, metavar="N", help="prefix length by which clients are grouped for it")
    add("--flags", type=_flags, metavar="FLAG,...", help=f"all of them: {', '.join(FLAG_WORDS)}; none")
    add("--engine", dest="persistence_engine", metavar="NAME", help="persistence engine: sip, or none")


def _add_destination_options(parser: _Parser, default: str = "") -> None:
    _add_names(parser, "destination")
    add = parser.add_argument
    add("--method", choices=_METHODS, help="how packets get there" + default)
    add("--weight", type=int, metavar="N", help="share of new connections; 0 = none")
    add("--upper", dest="upper_threshold", type=int, metavar="N", help="connections at which new ones stop; 0 = no limit")
    add("--lower", dest="lower_threshold", type=int, metavar="N", help="below so many they come again")
    add("--tunnel-type", choices=[str(kind) for kind in TunnelType], help="of method tunnel")
    add("--tunnel-port", type=int, metavar="N", help="UDP port of gue")
    add("--tunnel-flags", type=_tunnel_flags, metavar="FLAG,...", help="csum, remcsum; none")


def _daemons(group: _Group) -> None:
    below = group.group("daemon", "synchronization daemons", "pyipvs daemon list")
    below.add("list", commands.list_daemons, "show those that run", "pyipvs daemon list")
    start = below.add(
        "start", commands.start_daemon, "start sending (master) or receiving (backup) connections",
        "pyipvs daemon start master --interface eth0 --sync-id 7",
        "pyipvs daemon start backup --interface eth0 --group ff02::51 --port 8900",
    )  # fmt: skip
    stop = below.add("stop", commands.stop_daemon, "stop one", "pyipvs daemon stop master")
    for parser in (start, stop):
        parser.add_argument("state", metavar="STATE", choices=[str(state) for state in DaemonState], help="master or backup")
    add = start.add_argument
    add("--sync-id", type=_sync_id, default=0, metavar="N", help="0 to 255 (default 0)")
    add("--interface", required=True, metavar="IF", help="where the multicast goes")
    add("--group", metavar="ADDRESS", help="multicast address (kernel's choice: 224.0.0.81)")
    add("--port", type=int, metavar="N", help="UDP port (8848)")
    add("--ttl", type=int, metavar="N", help="hops (1)")
    add("--max-length", type=int, metavar="N", help="bytes of a message (kernel's choice)")


def _others(group: _Group) -> None:
    timeouts = group.add(
        "timeouts", commands.timeouts, "show or set connection timeouts, in seconds",
        "pyipvs timeouts", "pyipvs timeouts --tcp 900 --udp 60",
    )  # fmt: skip
    for name in ("tcp", "tcp-fin", "udp"):
        dest = f"{name.replace('-', '_')}_s"
        timeouts.add_argument(f"--{name}", dest=dest, type=_positive, metavar="S", help="at least 1; the others stay")
    zero = group.add("zero", commands.zero, "set counters to zero", "pyipvs zero", "pyipvs zero tcp/10.0.0.1:80")
    zero.add_argument("service", nargs="?", metavar="SERVICE", help=f"of this one only: {_SERVICE}")
    flush = group.add("flush", commands.flush, "remove every service, whoever made it", "pyipvs flush --yes")
    flush.add_argument("--yes", action="store_true", help="do not ask; needed without a terminal")
    group.add("info", commands.info, "show the version of IPVS and the size of its connection table", "pyipvs info")
    sysctl = group.add(
        "sysctl", commands.sysctl, "show or set the sysctls of IPVS (to show them needs no privilege)",
        "pyipvs sysctl", "pyipvs sysctl expire_nodest_conn 1", "pyipvs sysctl sync_threshold '3 50'",
    )  # fmt: skip
    sysctl.add_argument("name", nargs="?", metavar="NAME", help="this one only")
    sysctl.add_argument("value", nargs="?", metavar="VALUE", help="what it shall be")


def _flags(text: str) -> ServiceFlags:
    flags = ServiceFlags.NONE
    for word in text.split(",") if text != "none" else ():
        if word not in FLAG_WORDS:
            raise argparse.ArgumentTypeError(f"{word!r} must be one of {', '.join(FLAG_WORDS)}")
        flags |= FLAG_WORDS[word]
    return flags


def _tunnel_flags(text: str) -> int:
    flags = 0
    for word in text.split(","):
        if word not in _TUNNEL_FLAGS:
            raise argparse.ArgumentTypeError(f"{word!r} must be one of {', '.join(_TUNNEL_FLAGS)}")
        flags |= _TUNNEL_FLAGS[word]
    return flags


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def _sync_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 255):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 255")
    return int(text)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:  # NaN is not
        raise argparse.ArgumentTypeError(f"{text!r} must be from 0.1 to 86400 seconds")
    return seconds
