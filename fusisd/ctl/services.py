"""fusisctl's commands for services: `services`, `service list|show|add|edit|delete`.

Does not: know HTTP (client.py does).
"""

from __future__ import annotations

import argparse
from typing import Any

from fusisd.ctl import render, words
from fusisd.ctl.client import Client, place
from fusisd.ctl.files import foretell

_KEY = ("protocol", "address", "port", "fwmark", "family")
_SETTINGS = ("scheduler", "persistence_s", "netmask", "persistence_engine", "flags", "vip", "announce", "check")
_FIELDS = (*_KEY, *_SETTINGS)


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    words.command(commands, "services", services, "services and destinations as the kernel has them", "fusisctl services")
    nouns = words.group(commands, "service", "services of ours")
    words.command(nouns, "list", list_services, "all services of ours", "fusisctl service list")
    show = words.command(nouns, "show", show_service, "one service and its destinations", "fusisctl service show web")
    example = "fusisctl service add web --address 10.0.0.1 --port 80 --scheduler wrr --check http"
    add = words.command(nouns, "add", add_service, "make a service; without --address one is allocated", example)
    example = "fusisctl service edit web --scheduler mh --flag sched1 --unset check"
    edit = words.command(nouns, "edit", edit_service, "change what is given and leave the rest", example)
    example = "fusisctl service delete web --drain 30"
    delete = words.command(nouns, "delete", delete_service, "remove a service, when its connections have ended", example)
    for parser in (show, add, edit, delete):
        parser.add_argument("name", metavar="NAME")
    for parser in (add, edit):
        _add_fields(parser)
    edit.add_argument("--unset", action="append", metavar="FIELD", help="have none of it, repeatable")
    words.add_removal(delete)
    words.add_dry_run(add, edit, delete)


def _add_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="IP", help="the VIP")
    parser.add_argument("--port", type=int, help="0 with --persistence: all ports")
    parser.add_argument("--protocol", choices=("tcp", "udp", "sctp"), help="(default tcp)")
    parser.add_argument("--fwmark", type=int, metavar="MARK", help="packets with this mark, instead of an address")
    parser.add_argument("--family", choices=("ipv4", "ipv6"), help="of a mark, or of the VIP to allocate (default ipv4)")
    parser.add_argument("--scheduler", metavar="NAME", help="rr, wrr, lc, wlc, sh, mh ... (default rr)")
    parser.add_argument("--persistence", dest="persistence_s", type=int, metavar="S", help="a client stays so long")
    parser.add_argument("--netmask", type=int, metavar="LENGTH", help="prefix by which clients are grouped for it")
    parser.add_argument("--engine", dest="persistence_engine", metavar="NAME", help="persistence engine (sip)")
    parser.add_argument("--flag", dest="flags", action="append", metavar="NAME", help="one_packet, sched1 ..., repeatable")
    parser.add_argument("--vip", choices=("managed", "external"), help="external: the address is another's affair")
    parser.add_argument("--announce", choices=("always", "when-usable"), help="when the VIP stands")
    parser.add_argument("--check", type=words.check, metavar="KIND|JSON", help="tcp, http, none ..., or all of it as JSON")


def services(client: Client, options: argparse.Namespace) -> int:
    """The seed's list."""
    found = client.get_list("/services")
    if options.json:
        render.say_json(found)
        return 0
    rows: list[tuple[object, ...]] = []
    for service in found:
        # a service by firewall mark has no protocol and shows its whole key as Host
        where = f"{service['Protocol']}/{_endpoint(service)}" if service["Protocol"] else service["Host"]
        rows.append((service["Name"] or "(foreign)", where, service["Scheduler"], "", ""))
        for destination in service["Destinations"] or []:
            row = (f"  {destination['Name']}", _endpoint(destination), "", destination["Mode"], destination["Weight"])
            rows.append(row)
    render.table(("NAME", "ADDRESS", "SCHEDULER", "MODE", "WEIGHT"), rows)
    return 0


def _endpoint(row: dict[str, Any]) -> str:
    return render.endpoint(row["Host"], row["Port"])


def list_services(client: Client, options: argparse.Namespace) -> int:
    """One line each."""
    found = client.get_object("/v1/services", "services")
    if options.json:
        render.say_json(found)
        return 0
    rows = [_service_row(service) for service in found["services"]]
    render.table(("NAME", "KEY", "SCHEDULER", "DESTINATIONS", "STATE", "REASON"), rows)
    return 0


def _service_row(service: dict[str, Any]) -> tuple[object, ...]:
    status = service["status"]
    serving = sum(1 for row in status["destinations"].values() if row["weight"])
    count = f"{serving}/{len(status['destinations'])}"
    return service["name"], status["key"], service["scheduler"], count, _state(status), status["reason"]


def _state(status: dict[str, Any]) -> str:
    return "draining" if status["draining"] else "applied" if status["applied"] else "not applied"


def show_service(client: Client, options: argparse.Namespace) -> int:
    """Its settings and destinations."""
    return _tell(client.get_object(place(options.name), "status"), options)


def _tell(service: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        render.say_json(service)
        return 0
    status = service["status"]
    said = {name: service[name] for name in service if name not in ("name", "status", "destinations", *_KEY)}
    settings = " ".join(f"{name}={_short(value)}" for name, value in said.items())
    render.say(f"{service['name']} {status['key']} {settings}")
    render.say(f"  {_state(status)}, revision {status['revision']}{': ' if status['reason'] else ''}{status['reason']}")
    if status["destinations"]:
        render.table(render.DESTINATIONS, render.destination_rows(status))
    return 0


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("kind", value))
    return ",".join(value) if isinstance(value, list) else str(value)


def add_service(client: Client, options: argparse.Namespace) -> int:
    """Make one."""
    fields = words.given(options, *_FIELDS)
    if "fwmark" not in fields:
        fields.setdefault("protocol", "tcp")
    document = {"name": options.name, **fields}
    if options.dry_run:
        return foretell(client, "POST", "/v1/services", document, options)
    return _tell(client.send("POST", "/v1/services", document), options)


def edit_service(client: Client, options: argparse.Namespace) -> int:
    """Change one."""
    path, document = place(options.name), words.given(options, *_FIELDS)
    if options.dry_run:
        return foretell(client, "PATCH", path, document, options)
    return _tell(client.send("PATCH", path, document), options)


def delete_service(client: Client, options: argparse.Namespace) -> int:
    """Remove one."""
    path = place(options.name) + words.removal(options)
    if options.dry_run:
        return foretell(client, "DELETE", path, None, options)
    return tell_removed(client.send("DELETE", path), options.name, options)


def tell_removed(answer: Any, name: str, options: argparse.Namespace) -> int:
    """What a DELETE left: nothing, or something that drains."""
    if options.json:
        render.say_json(answer)
    else:
        render.say(f"{name} is gone" if answer is None else f"{name} drains; fusisctl drains shows how far it is")
    return 0
