"""fusisctl's commands for drains: `drain`, `undrain`, `drains`.

Does not: know HTTP (client.py does).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from fusisd.ctl import render, words
from fusisd.ctl.client import Client, place
from fusisd.ctl.files import foretell

LOOK_EVERY_S = 0.5
BAR = 20


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    text = "take a service or a destination out: no new connections, removed when those it has have ended"
    drain_ = words.command(commands, "drain", drain, text, "fusisctl drain web/rs1 --wait --limit 300")
    drain_.add_argument("--wait", action="store_true", help="until it is over, with its progress on stderr")
    drain_.add_argument("--limit", type=words.whole_seconds, default=60.0, metavar="S", help="cut it then (default 60)")
    words.add_dry_run(drain_)
    undrain_ = words.command(commands, "undrain", undrain, "take back into service what drains", "fusisctl undrain web/rs1")
    for parser in (drain_, undrain_):
        parser.add_argument("what", type=words.service_and_destination, metavar="SERVICE[/DESTINATION]")
    words.command(commands, "drains", drains, "what drains, and how far it is", "fusisctl drains")


def drain(client: Client, options: argparse.Namespace) -> int:
    """Begin, and with --wait see it through; 1 when somebody took it back."""
    service, name = options.what
    label = service if name is None else f"{service}/{name}"
    path = f"{place(service, name)}?drain_s={words.seconds(options.limit)}"
    if options.dry_run:
        return foretell(client, "DELETE", path, None, options)
    key = client.get_object(place(service), "status")["status"]["key"] if options.wait else ""
    answer = client.send("DELETE", path)
    if options.wait and answer is not None:
        _wait(client, service, name, label)
        if why := _stays(client, service, name, key):
            render.complain(f"{label} {why}")
            return 1
        answer = None
    if options.json:
        render.say_json(answer)
    else:
        limit = f"for {words.seconds(options.limit)} s at the most"
        render.say(f"{label} is gone" if answer is None else f"{label} drains, {limit}")
    return 0


def _wait(client: Client, service: str, name: str | None, label: str) -> None:
    """Until it drains no more. The daemon's deadline is the limit of this wait."""
    most, told = 1, ""
    while (row := _row(client, service, name)) is not None:
        most = max(most, row["active"])
        bar = "#" * (BAR * (most - row["active"]) // most)
        line = f"{label} [{bar:<{BAR}}] {row['active']} active, {row['inactive']} inactive, cut in {row['left_s']:.0f} s"
        if line != told:
            render.progress(line)
        told = line
        time.sleep(LOOK_EVERY_S)
    render.progress_ends()


def _stays(client: Client, service: str, name: str | None, key: str) -> str:
    """What became of it that is there still, "" when it is gone."""
    services = client.get_patiently("/v1/services", "services")["services"]
    left = next((one for one in services if one["name"] == service), None)
    if left is not None:
        back = name is None or name in left["status"]["destinations"]
        return "was taken back into service" if back else ""
    released = any(row["key"] == key for row in client.get_patiently("/v1/foreign", "foreign")["foreign"])
    return f"stands in the kernel as it was: service {service} was released meanwhile" if released else ""


def _row(client: Client, service: str, name: str | None) -> dict[str, Any] | None:
    rows: list[dict[str, Any]] = client.get_patiently("/v1/drains", "drains")["drains"]
    return next((row for row in rows if (row["service"], row["destination"]) == (service, name)), None)


def undrain(client: Client, options: argparse.Namespace) -> int:
    """Cancel it."""
    service, name = options.what
    answer = client.send("DELETE", f"{place(service, name)}/drain")
    if options.json:
        render.say_json(answer)
    else:
        render.say(f"{service if name is None else f'{service}/{name}'} is in service")
    return 0


def drains(client: Client, options: argparse.Namespace) -> int:
    """All of them."""
    found = client.get_object("/v1/drains", "drains")
    if options.json:
        render.say_json(found)
        return 0
    rows = [
        (r["service"], r["destination"] or "(all)", r["active"], r["inactive"], f"{r['left_s']:.0f}s", r["reason"])
        for r in found["drains"]
    ]
    render.table(("SERVICE", "DESTINATION", "ACTIVE", "INACTIVE", "LEFT", "REASON"), rows)
    return 0
