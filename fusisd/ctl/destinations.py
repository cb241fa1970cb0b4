"""fusisctl's commands for destinations: `destination add|edit|list|show|delete`.

Does not: know HTTP (client.py does).
"""

from __future__ import annotations

import argparse
from typing import Any

from fusisd.ctl import render, words
from fusisd.ctl.client import Client, place
from fusisd.ctl.files import foretell
from fusisd.ctl.services import tell_removed

_FIELDS = ("address", "port", "weight", "method", "upper_threshold", "lower_threshold", "tunnel", "tier", "check")


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    nouns = words.group(commands, "destination", "where a service's connections go")
    example = "fusisctl destination add web/rs1 --address 10.0.0.11 --port 80 --method nat"
    add = words.command(nouns, "add", add_destination, "add a destination; one that drains is taken back", example)
    example = "fusisctl destination edit web/rs1 --weight 0"
    edit = words.command(nouns, "edit", edit_destination, "change what is given and leave the rest", example)
    example = "fusisctl destination delete web/rs1 --drain 300"
    delete = words.command(nouns, "delete", delete_destination, "remove it, when its connections have ended", example)
    shown = words.command(nouns, "list", list_destinations, "all of a service", "fusisctl destination list web")
    shown.add_argument("service", metavar="SERVICE")
    show = words.command(nouns, "show", show_destination, "one, with its settings", "fusisctl destination show web/rs1")
    for parser in (add, edit, delete, show):
        parser.add_argument("what", type=words.one_destination, metavar="SERVICE/NAME")
    for parser in (add, edit):
        _add_fields(parser)
    edit.add_argument("--unset", action="append", metavar="FIELD", help="have none of it, repeatable")
    words.add_removal(delete)
    words.add_dry_run(add, edit, delete)


def _add_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="IP", help="of the real server")
    parser.add_argument("--port", type=int, help="on which it answers")
    parser.add_argument("--weight", type=int, help="its share (default 1); 0: no new connections")
    parser.add_argument("--method", choices=("nat", "route", "tunnel"), help="forwarding method (default route)")
    parser.add_argument("--upper", dest="upper_threshold", type=int, metavar="N", help="no new connections from N on")
    parser.add_argument("--lower", dest="lower_threshold", type=int, metavar="N", help="and again below N")
    parser.add_argument("--tunnel", type=words.tunnel, metavar="TYPE[:PORT]|JSON", help="ipip, gre, gue:6080")
    parser.add_argument("--tier", choices=("primary", "backup"), help="backup: only while no primary one serves")
    parser.add_argument("--check", type=words.check, metavar="KIND|JSON", help="instead of the service's")


def add_destination(client: Client, options: argparse.Namespace) -> int:
    """Add one."""
    service, name = options.what
    fields = words.given(options, *_FIELDS)
    path, document = f"{place(service)}/destinations", {"name": name, **fields}
    if options.dry_run:
        return foretell(client, "POST", path, document, options)
    return _tell(client.send("POST", path, document), options)


def edit_destination(client: Client, options: argparse.Namespace) -> int:
    """Change one."""
    path, document = place(*options.what), words.given(options, *_FIELDS)
    if options.dry_run:
        return foretell(client, "PATCH", path, document, options)
    return _tell(client.send("PATCH", path, document), options)


def list_destinations(client: Client, options: argparse.Namespace) -> int:
    """Those of operators and those that Serf brought."""
    found = client.get_object(place(options.service), "status")
    if options.json:
        render.say_json(found["status"]["destinations"])
        return 0
    render.table(render.DESTINATIONS, render.destination_rows(found["status"]))
    return 0


def show_destination(client: Client, options: argparse.Namespace) -> int:
    """One."""
    return _tell(client.get_object(place(*options.what), "status"), options)


def delete_destination(client: Client, options: argparse.Namespace) -> int:
    """Remove one."""
    where = place(*options.what) + words.removal(options)
    if options.dry_run:
        return foretell(client, "DELETE", where, None, options)
    return tell_removed(client.send("DELETE", where), "/".join(options.what), options)


def _tell(destination: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        render.say_json(destination)
        return 0
    rows = render.destination_rows({"destinations": {destination["name"]: destination["status"]}})
    render.table(render.DESTINATIONS, rows)
    return 0
