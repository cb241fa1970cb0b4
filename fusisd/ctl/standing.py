"""fusisctl's commands for how the balancer stands: `status`, and `join-command`, which brings a server in.

Does not: know HTTP (client.py does).
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from fusisd.ctl import keys, render, words
from fusisd.ctl.client import Client, CtlError
from fusisd.tags import METHODS


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    text = "how it stands: problems, nodes; exit status 1 when there is a problem"
    words.command(commands, "status", status, text, "fusisctl status")
    text = "print the line that brings a server into a service (key included: treat it as a secret)"
    join = words.command(commands, "join-command", join_command, text, "fusisctl join-command --service web --port 8080")
    join.add_argument("--service", metavar="NAME", help="the service that the server will offer (default: the only one)")
    join.add_argument("--port", type=int, default=80, help="the port on which it answers (default 80)")
    join.add_argument("--mode", default="nat", choices=METHODS, help="forwarding method (default nat)")
    join.add_argument(
        "--state-dir", type=Path, default=keys.STATE_DIR, metavar="DIR", help="fusisd's (default %(default)s)"
    )


def status(client: Client, options: argparse.Namespace) -> int:
    """Problems and nodes."""
    found = client.get_object("/status", "serf")
    if options.json:
        render.say_json(found)
        return 0 if found["ok"] else 1
    render.say(f"fusisd {found['version']} on {found['iface'] or 'no interface (dry run)'}")
    for problem in found["problems"]:
        render.say(f"  problem: {problem}")
    if found["ok"]:
        render.say("  everything is as it should be")
    nodes = [
        (n["name"], n["address"], n["status"], ",".join(n["services"]), f"{n['since_s']:.0f}s") for n in found["nodes"]
    ]
    render.table(("NODE", "ADDRESS", "SERF", "SERVICES", "SINCE"), nodes)
    return 0 if found["ok"] else 1


def join_command(client: Client, options: argparse.Namespace) -> int:
    """One line for a root shell on the real server: it stores the key, readable by root only, and runs the agent."""
    serf = client.get_object("/status", "serf")["serf"]
    if serf["mode"] != "managed":
        raise CtlError("this fusisd keeps no Serf agent of its own (--serf managed): servers join that of yours")
    key = shlex.quote(keys.in_use(options.state_dir))
    others = [address for address in keys.balancers(options.state_dir) if address != serf["address"]]
    agent = ["fusis-agent", "--balancer", ",".join([serf["address"], *others]), "--key-file", "/etc/fusis/key"]
    agent += ["--service", options.service or _only_service(client)]
    agent += ["--port", str(options.port), "--mode", options.mode]
    agent += ["--bind-port", str(serf["port"])] if serf["port"] != 7946 else []
    line = f"mkdir -p -m 0755 /etc/fusis && (umask 077; printf '%s\\n' {key} >/etc/fusis/key) && {shlex.join(agent)}"
    if options.json:
        render.say_json({"command": line})
    else:
        render.say_raw(line)
    return 0


def _only_service(client: Client) -> str:
    """The one service that there is. Raises CtlError."""
    services: list[dict[str, Any]] = client.get_list("/services")
    names: list[str] = [service["Name"] for service in services if service["Name"]]
    if len(names) != 1:
        there = f"there are {', '.join(names)}" if names else "there is none yet"
        raise CtlError(f"which service will the server offer? Give --service ({there})", 2)
    return names[0]
