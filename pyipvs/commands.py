"""What each command of `pyipvs` does; each takes how to open the table and the options, and returns its exit status.

Does not: parse a command line, or turn errors into words (cli.py does).
"""

from __future__ import annotations

import errno
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyipvs import procfs, report, top
from pyipvs.changes import Change, ChangeList
from pyipvs.client import IPVS, Progress
from pyipvs.daemons import Daemon
from pyipvs.errors import IPVSError
from pyipvs.model import Info, ServiceKey, ServiceStatus, Tunnel, split_endpoint
from pyipvs.netns import network_namespace
from pyipvs.procfs import Connection
from pyipvs.ruleset import Ruleset, diff

Opener = Callable[[], IPVS]

SERVICE_SETTINGS = ("scheduler", "flags", "persistence_s", "netmask", "persistence_engine")
DESTINATION_SETTINGS = ("method", "weight", "upper_threshold", "lower_threshold")
_TUNNEL = ("tunnel_type", "tunnel_port", "tunnel_flags")
_SLOW = 1000  # changes from which on progress is shown


class UsageError(ValueError):
    """A command line that says too little, or contradicts itself."""


def list_table(opened: Opener, options: Namespace) -> int:
    """`list`."""
    if options.connections:
        return _list_connections(options)
    with opened() as ipvs:
        info = ipvs.info()
        shown = report.in_order(_shown(ipvs, options.service))
    if options.json:
        _print_json(report.plain(info) | {"services": report.as_json(shown)})
        return 0
    if options.service is None:
        print(_heading(info))
    columns = report.COUNTERS if options.stats else report.RATES if options.rate else ()
    print("\n".join(report.statistics(shown, columns) if columns else report.configuration(shown)))
    return 0


def _heading(info: Info) -> str:
    return f"IP Virtual Server version {info.version} (size={info.connection_table_size})"


def _shown(ipvs: IPVS, service: str | None) -> Iterator[report.Shown]:
    if service is not None:
        yield ipvs.service(service), ipvs.destinations(service)
        return
    for entry in ipvs.scan():
        if entry.stats is not None:
            yield ServiceStatus(entry.service, entry.stats), entry.status


def _list_connections(options: Namespace) -> int:
    wanted = None if options.service is None else ServiceKey.parse(options.service)
    if wanted is not None and wanted.mark is not None:
        raise UsageError("connections do not tell their firewall mark: leave the service out")
    with network_namespace(options.netns):
        found = procfs.connections()  # it is open now
    mine = (one for one in found if wanted is None or _is_of(one, wanted))
    if options.json:
        _print_json([report.plain(one) for one in mine])
    else:
        print("IPVS connection entries", *report.connection_lines(mine), sep="\n")
    return 0


def _is_of(one: Connection, key: ServiceKey) -> bool:
    """A service without a port takes every one that no other service has."""
    return (one.protocol, one.virtual_address) == (key.protocol, key.address) and key.port in (0, one.virtual_port)


def show_top(opened: Opener, options: Namespace) -> int:
    """`top`."""
    with opened() as ipvs:
        top.show(ipvs.snapshot, options.interval, options.sort, options.count, sys.stdin, sys.stdout)
    return 0


def save(opened: Opener, options: Namespace) -> int:
    """`save`."""
    with opened() as ipvs:
        table = ipvs.snapshot(statistics=False)
    try:
        text = table.text()
    except ValueError as error:  # of another program's making, so not wrong usage
        raise IPVSError("save", errno.EOPNOTSUPP, "the table", str(error)) from None
    if options.file == "-":
        sys.stdout.write(text)
    else:
        _write(Path(options.file), text)
    return 0


def _write(path: Path, text: str) -> None:
    """Write a file that is whole or, when that fails, what it was; what is no file (/dev/stdout) is written to."""
    place = path.resolve()
    if place.exists() and not place.is_file():
        place.write_text(text, "utf-8")
        return
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with part.open("x", encoding="utf-8") as file:
            if place.exists():
                os.fchmod(file.fileno(), place.stat().st_mode & 0o7777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def restore(opened: Opener, options: Namespace) -> int:
    """`restore`."""
    changes = diff(Ruleset(), _read(options.file))
    with opened() as ipvs:
        _carry_out(ipvs, changes)
    return 0


def plan(opened: Opener, options: Namespace) -> int:
    """`plan`."""
    wanted = _read(options.file)
    with opened() as ipvs:
        old = ipvs.snapshot(statistics=False)
    changes = diff(old, wanted)
    for line in report.plan(old, changes):
        print(line)
    return 1 if changes else 0


def apply(opened: Opener, options: Namespace) -> int:
    """`apply`."""
    if not options.yes and (options.file == "-" or not _is_terminal()):
        raise UsageError("apply deletes what the file does not have: without a terminal to ask on, give --yes")
    wanted = _read(options.file)
    with opened() as ipvs:
        old = ipvs.snapshot(statistics=False)
        changes = diff(old, wanted)
        if changes and not options.yes:
            print("\n".join(report.plan(old, changes)), flush=True)
            if not _agreed(f"{report.summary(old, changes)}: apply?"):
                return 1
        _carry_out(ipvs, changes)
    print(f"applied {report.summary(old, changes)}" if changes else "nothing to change")
    return 0


def _read(file: str) -> Ruleset:
    """The table that a file, or stdin for `-`, holds."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not a table that was saved: it is not UTF-8") from None
    return Ruleset.parse(text)


def _carry_out(ipvs: IPVS, changes: ChangeList | list[Change]) -> None:
    with _progress(len(changes)) as progress:
        ipvs.apply(changes, progress)


@contextmanager
def _progress(count: int) -> Iterator[Progress | None]:
    """How far it is, on one line of a terminal that is empty again at the end."""
    if count < _SLOW or not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda done, whole: print(f"\r{done} of {whole} changes", end="", file=sys.stderr, flush=True)
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _agreed(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("pyipvs: nothing was changed", file=sys.stderr)
    return False


def add_service(opened: Opener, options: Namespace) -> int:
    """`add service`."""
    with opened() as ipvs:
        ipvs.add_service(options.service, **_service_settings(options))
    return 0


def edit_service(opened: Opener, options: Namespace) -> int:
    """`edit service`."""
    settings = _service_settings(options)
    if not settings:
        raise UsageError("name what to change; see `pyipvs edit service --help`")
    with opened() as ipvs:
        ipvs.update_service(options.service, **settings)
    return 0


def delete_service(opened: Opener, options: Namespace) -> int:
    """`delete service`."""
    with opened() as ipvs:
        ipvs.delete_service(options.service)
    return 0


def add_destination(opened: Opener, options: Namespace) -> int:
    """`add destination`."""
    settings = _named(options, DESTINATION_SETTINGS) | _tunnel_settings(options, Tunnel())
    with opened() as ipvs:
        ipvs.add_destination(options.service, options.destination, **settings)
    return 0


def edit_destination(opened: Opener, options: Namespace) -> int:
    """`edit destination`."""
    settings, tunnelled = _named(options, DESTINATION_SETTINGS), bool(_named(options, _TUNNEL))
    if not settings and not tunnelled:
        raise UsageError("name what to change; see `pyipvs edit destination --help`")
    with opened() as ipvs:
        if tunnelled:
            settings |= _tunnel_settings(options, _known_tunnel(ipvs, options))
        ipvs.update_destination(options.service, options.destination, **settings)
    return 0


def delete_destination(opened: Opener, options: Namespace) -> int:
    """`delete destination`."""
    with opened() as ipvs:
        ipvs.delete_destination(options.service, options.destination)
    return 0


def _named(options: Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """What the command line says about these settings."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _service_settings(options: Namespace) -> dict[str, Any]:
    settings = _named(options, SERVICE_SETTINGS)
    if settings.get("persistence_engine") == "none":
        settings["persistence_engine"] = None
    return settings


def _tunnel_settings(options: Namespace, known: Tunnel) -> dict[str, Any]:
    """The tunnel with what is named changed; the port goes with gue."""
    named = {name.removeprefix("tunnel_"): value for name, value in _named(options, _TUNNEL).items()}
    if not named:
        return {}
    if named.get("type", "gue") != "gue":
        named = {"port": 0} | named
    return {"tunnel": replace(known, **named)}


def _known_tunnel(ipvs: IPVS, options: Namespace) -> Tunnel:
    at = split_endpoint(options.destination)
    tunnels = [row.destination.tunnel for row in ipvs.destinations(options.service) if row.destination.key == at]
    return next(filter(None, tunnels), Tunnel())


def timeouts(opened: Opener, options: Namespace) -> int:
    """`timeouts`."""
    named = _named(options, ("tcp_s", "tcp_fin_s", "udp_s"))
    with opened() as ipvs:
        if named:
            ipvs.set_timeouts(**named)
            return 0
        held = ipvs.timeouts()
    print(f"tcp {held.tcp_s}\ntcp-fin {held.tcp_fin_s}\nudp {held.udp_s}")
    return 0


def list_daemons(opened: Opener, options: Namespace) -> int:
    """`daemon list`."""
    with opened() as ipvs:
        print(report.daemon_lines(ipvs.daemons()))
    return 0


def start_daemon(opened: Opener, options: Namespace) -> int:
    """`daemon start`."""
    named = _named(options, ("sync_id", "max_length", "group", "port", "ttl"))
    with opened() as ipvs:
        ipvs.start_daemon(Daemon(options.state, options.interface, **named))
    return 0


def stop_daemon(opened: Opener, options: Namespace) -> int:
    """`daemon stop`."""
    with opened() as ipvs:
        ipvs.stop_daemon(options.state)
    return 0


def zero(opened: Opener, options: Namespace) -> int:
    """`zero`."""
    with opened() as ipvs:
        ipvs.zero(options.service)
    return 0


def flush(opened: Opener, options: Namespace) -> int:
    """`flush`."""
    if not options.yes and not _is_terminal():
        raise UsageError("flush removes every service: without a terminal to ask on, give --yes")
    with opened() as ipvs:
        if not options.yes and not _agreed(f"Remove {report.count(len(ipvs.services()), 'service')}?"):
            return 1
        ipvs.flush()
    return 0


def info(opened: Opener, options: Namespace) -> int:
    """`info`."""
    with opened() as ipvs:
        for name, value in report.plain(ipvs.info()).items():
            print(f"{name} = {value}")
    return 0


def sysctl(opened: Opener, options: Namespace) -> int:
    """`sysctl`."""
    with network_namespace(options.netns):
        if options.value is not None:
            procfs.set_sysctl(options.name, options.value, procfs.SYSCTLS)
            return 0
        if options.name is not None:
            found = {options.name: procfs.sysctl(options.name, procfs.SYSCTLS)}
        else:
            found = procfs.sysctls(procfs.SYSCTLS)
    for name, value in found.items():
        print(f"{name} = {value}")
    return 0


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()
