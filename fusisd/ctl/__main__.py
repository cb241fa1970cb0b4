"""The command `fusisctl`: what operators ask of a balancer, from a terminal."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusisd.ctl.changes import add_commands
from fusisd.ctl.client import Client, CtlError

_STRANGER = "what answers there is not fusisd, or one of another version"


def main(arguments: list[str] | None = None) -> int:
    """Run fusisctl with this command line (None: the process's own); the exit status: 0, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        token = _secret(options.token_file) if options.token_file else None
        status: int = options.run(Client(options.socket, options.url, token), options)
    except CtlError as error:
        print(f"fusisctl: {error}", file=sys.stderr)
        return error.status
    return status


def _status(client: Client, options: argparse.Namespace) -> int:
    status = _get_status(client)
    if options.json:
        print(json.dumps(status, indent=2))
        return 0 if status["ok"] else 1
    print(_plain(f"fusisd {status['version']} on {status['iface'] or 'no interface (dry run)'}"))
    for problem in status["problems"]:
        print(_plain(f"  problem: {problem}"))
    if status["ok"]:
        print("  everything is as it should be")
    nodes = [
        (n["name"], n["address"], n["status"], ",".join(n["services"]), f"{n['since_s']:.0f}s") for n in status["nodes"]
    ]
    _table(("NODE", "ADDRESS", "SERF", "SERVICES", "SINCE"), nodes)
    return 0 if status["ok"] else 1


def _services(client: Client, options: argparse.Namespace) -> int:
    services = _get_services(client)
    if options.json:
        print(json.dumps(services, indent=2))
        return 0
    rows: list[Sequence[object]] = []
    for service in services:
        # a service by firewall mark has no protocol and shows its whole key as Host
        where = f"{service['Protocol']}/{_endpoint(service)}" if service["Protocol"] else service["Host"]
        rows.append((service["Name"] or "(foreign)", where, service["Scheduler"], "", ""))
        for destination in service["Destinations"] or []:
            row = (f"  {destination['Name']}", _endpoint(destination), "", destination["Mode"], destination["Weight"])
            rows.append(row)
    _table(("NAME", "ADDRESS", "SCHEDULER", "MODE", "WEIGHT"), rows)
    return 0


def _join_command(client: Client, options: argparse.Namespace) -> int:
    """One line for a root shell on the real server: it stores the key, readable by root only, and runs the agent."""
    serf = _get_status(client)["serf"]
    if serf["mode"] != "managed":
        raise CtlError("this fusisd keeps no Serf agent of its own (--serf managed): servers join that of yours")
    key = shlex.quote(_secret(options.state_dir / "serf" / "key"))
    agent = ["fusis-agent", "--balancer", serf["address"], "--key-file", "/etc/fusis/key"]
    agent += ["--service", options.service or _only_service(client)]
    agent += ["--port", str(options.port), "--mode", options.mode]
    agent += ["--bind-port", str(serf["port"])] if serf["port"] != 7946 else []
    print(f"(umask 077; mkdir -p /etc/fusis && printf '%s\\n' {key} >/etc/fusis/key) && {shlex.join(agent)}")
    return 0


def _get_status(client: Client) -> dict[str, Any]:
    answer = client.get("/status")
    if not isinstance(answer, dict) or "serf" not in answer:
        raise CtlError(_STRANGER)
    return answer


def _get_services(client: Client) -> list[dict[str, Any]]:
    answer = client.get("/services")
    if not isinstance(answer, list):
        raise CtlError(_STRANGER)
    return answer


def _only_service(client: Client) -> str:
    """The one service that there is. Raises CtlError."""
    names: list[str] = [service["Name"] for service in _get_services(client) if service["Name"]]
    if len(names) != 1:
        there = f"there are {', '.join(names)}" if names else "there is none yet"
        raise CtlError(f"which service will the server offer? Give --service ({there})", 2)
    return names[0]


def _secret(file: Path) -> str:
    """What a file for root holds. Raises CtlError."""
    try:
        return file.read_text("ascii").strip()
    except PermissionError:
        raise CtlError(f"{file} is for root: run fusisctl as root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CtlError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None


def _endpoint(row: dict[str, Any]) -> str:
    host, port = row["Host"], row["Port"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _plain(text: str) -> str:
    """Without what could steer a terminal: a node's name is whatever some server calls itself."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = [columns, *([_plain(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fusisctl", description="Ask a Fusis balancer.")
    parser.add_argument(
        "--socket", type=Path, default=Path("/run/fusisd/fusisd.sock"), metavar="PATH", help="(default %(default)s)"
    )
    parser.add_argument("--url", metavar="URL", help="http://HOST:8000 instead of the socket")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token for changes through --url")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("status", _status, "how it stands: problems, nodes; exit status 1 when there is a problem"),
        ("services", _services, "services and destinations as the kernel has them"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)
    text = "print the line that brings a server into a service (key included: treat it as a secret)"
    join = commands.add_parser("join-command", help=text, description=text)
    join.add_argument("--service", metavar="NAME", help="the service that the server will offer (default: the only one)")
    join.add_argument("--port", type=int, default=80, help="the port on which it answers (default 80)")
    join.add_argument(
        "--mode", default="nat", choices=("nat", "route", "tunnel"), help="forwarding method (default nat)"
    )
    join.add_argument(
        "--state-dir", type=Path, default=Path("/var/lib/fusisd"), metavar="DIR", help="fusisd's (default %(default)s)"
    )
    join.set_defaults(run=_join_command)
    add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
