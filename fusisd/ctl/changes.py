"""The commands of fusisctl that change something, or ask why it is so: drains, ownership, pauses, export and import.

Does not: parse the command line's rest (__main__.py does), or know the balancer's inside.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusisd.ctl.client import Client, CtlError

Run = Callable[[Client, argparse.Namespace], int]
POLL_S = 1.0


def add_commands(commands: Any) -> None:
    """Put the commands of this room on the command line."""
    where = "SERVICE or SERVICE/DESTINATION"
    drain = _command(commands, "drain", _drain, "take a service or destination out when its connections have ended")
    drain.add_argument("where", metavar="WHERE", help=where)
    drain.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="cut it then at the latest (default 60)")
    drain.add_argument("--wait", action="store_true", help="wait for the end, and show how far it is")
    undrain = _command(commands, "undrain", _undrain, "take back into service what drains")
    undrain.add_argument("where", metavar="WHERE", help=where)
    _command(commands, "drains", _drains, "what drains, with its connections and the time that is left")
    why = _command(commands, "why", _why, "how a service or destination stands, and why")
    why.add_argument("where", metavar="WHERE", help=where)
    adopt = _command(commands, "adopt", _adopt, "make a service that somebody else made in the kernel ours, as it stands")
    adopt.add_argument("key", metavar="KEY", help="as tcp/10.0.0.1:80 or fwmark/7")
    adopt.add_argument("name", metavar="NAME", help="the name it gets")
    release = _command(commands, "release", _release, "forget a service, and leave all of it as it stands")
    release.add_argument("name", metavar="NAME", help="its name")
    pause = _command(commands, "pause", _pause, "change nothing in the kernel for a while; 0 ends a pause")
    pause.add_argument("seconds", type=float, metavar="SECONDS", help="at most a day")
    export = _command(commands, "export", _export, "write everything that operators want as a file")
    export.add_argument("file", nargs="?", type=Path, metavar="FILE", help="standard output without")
    take_in = _command(commands, "import", _import, "make everything of an exported file; what is not in it stays")
    take_in.add_argument("file", type=Path, metavar="FILE", help="as export wrote it")


def _command(commands: Any, name: str, run: Run, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _drain(client: Client, options: argparse.Namespace) -> int:
    client.ask("DELETE", f"{_path(options.where)}?drain_s={options.limit:g}")
    while options.wait and (rows := _rows(client, options.where)):
        active = sum(row["active"] for row in rows)
        left_s = max(row["drain_left_s"] for row in rows)
        print(f"\r{active} active connections, at most {left_s:.0f} s more ", end="", file=sys.stderr, flush=True)
        time.sleep(POLL_S)
    if options.wait:
        print("\rgone" + " " * 50, file=sys.stderr)
    return 0


def _rows(client: Client, where: str) -> list[dict[str, Any]]:
    """Of what drains, that which is meant."""
    service, _, destination = where.partition("/")
    rows = [row for row in client.get("/v1/drains") if row["service"] == service]
    return [row for row in rows if not destination or row["destination"] == destination]


def _undrain(client: Client, options: argparse.Namespace) -> int:
    client.ask("DELETE", f"{_path(options.where)}/drain")
    return 0


def _drains(client: Client, options: argparse.Namespace) -> int:
    for row in client.get("/v1/drains"):
        where, left = f"{row['service']}/{row['destination']}", row["drain_left_s"]
        print(f"{where}: {row['active']} active, {row['inactive']} inactive, {left:.0f} s left ({row['reason']})")
    return 0


def _why(client: Client, options: argparse.Namespace) -> int:
    name, _, destination = options.where.partition("/")
    service = client.get(f"/v1/services/{_quoted(name)}")
    status = service["status"]
    print(f"{name}: {'applied' if status['applied'] else 'NOT APPLIED'}{_because(status['reason'])}")
    rows = {key: row for key, row in service["destinations"].items() if destination in ("", key)}
    if destination and not rows:
        raise CtlError(f"service {name} has no destination {destination!r}")
    for key, row in sorted(rows.items()):
        state, wanted = row["status"], row.get("weight")
        asked = "" if wanted is None or wanted == state["weight"] else f" (asked for {wanted})"
        weight = f"weight {state['weight']}{asked}"
        print(f"  {key}: {state['state']}, {weight}, {state['active']} active{_because(state['reason'])}")
    return 0


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _adopt(client: Client, options: argparse.Namespace) -> int:
    client.ask("POST", "/v1/adopt", {"name": options.name, "key": options.key})
    return 0


def _release(client: Client, options: argparse.Namespace) -> int:
    client.ask("POST", f"/v1/services/{_quoted(options.name)}/release")
    return 0


def _pause(client: Client, options: argparse.Namespace) -> int:
    client.ask("POST", "/v1/pause", {"seconds": options.seconds})
    return 0


def _export(client: Client, options: argparse.Namespace) -> int:
    text = json.dumps(client.get("/v1/export"), indent=2) + "\n"
    if options.file is None:
        print(text, end="")
        return 0
    try:
        options.file.write_text(text)
    except OSError as error:
        raise CtlError(f"cannot write {options.file}: {error.strerror}") from None
    return 0


def _import(client: Client, options: argparse.Namespace) -> int:
    try:
        document = json.loads(options.file.read_text())
    except (OSError, ValueError) as error:
        raise CtlError(f"cannot read {options.file}: {getattr(error, 'strerror', None) or error}") from None
    done = client.ask("POST", "/v1/import", document)
    for name, what in done.items():
        print(f"{name}: {what}")
    return 1 if any(what.startswith("refused") for what in done.values()) else 0


def _path(where: str) -> str:
    service, slash, destination = where.partition("/")
    path = f"/v1/services/{_quoted(service)}"
    return f"{path}/destinations/{_quoted(destination)}" if slash else path


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
