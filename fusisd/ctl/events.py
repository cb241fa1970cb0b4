"""fusisctl's commands for what happened and why: `events`, `why`.

Does not: know HTTP (client.py does).
"""

from __future__ import annotations

import argparse
import time
import urllib.parse
from typing import Any

from fusisd.ctl import render, words
from fusisd.ctl.client import Client, place

LOOK_EVERY_S = 0.5


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    example = "fusisctl events -f --service web"
    events_ = words.command(commands, "events", events, "what happened, why, and on whose word", example)
    events_.add_argument("-f", "--follow", action="store_true", help="go on with what happens, until interrupted")
    events_.add_argument("--after", metavar="ID", help="those after this one (default: the last ones)")
    events_.add_argument("--limit", type=int, default=100, metavar="N", help="so many at a time (default 100)")
    events_.add_argument("--service", metavar="NAME", help="those of this service")
    text = "why a destination has its weight, or how all of a service stands"
    why_ = words.command(commands, "why", why, text, "fusisctl why web/rs1")
    why_.add_argument("what", type=words.service_and_destination, metavar="SERVICE[/DESTINATION]")


def events(client: Client, options: argparse.Namespace) -> int:
    """One page, or page after page."""
    page = _page(client, options, options.after)
    if options.json and not options.follow:
        render.say_json(page)
        return 0
    _tell_page(page, options.json)
    while options.follow:
        if not page["events"]:
            time.sleep(LOOK_EVERY_S)
        page = _page(client, options, page["next"], patiently=True)
        _tell_page(page, options.json)
    return 0


def _page(client: Client, options: argparse.Namespace, after: str | None, patiently: bool = False) -> dict[str, Any]:
    asked = {"after": after, "limit": options.limit, "service": options.service}
    query = urllib.parse.urlencode({name: value for name, value in asked.items() if value is not None})
    ask = client.get_patiently if patiently else client.get_object
    return ask(f"/v1/events?{query}", "events")


def _tell_page(page: dict[str, Any], as_json: bool) -> None:
    if page["missed"]:
        render.complain("some events are lost: they are older than what fusisd keeps, or than its start")
    for event in page["events"]:
        if as_json:
            render.say_json_line(event)
        else:
            render.say(_line(event))


def _line(event: dict[str, Any]) -> str:
    where = "/".join(event[name] for name in ("service", "destination") if event[name]) or event["node"] or "-"
    cause = f" ({event['cause']})" if event["cause"] else ""
    return f"{event['time']} {event['kind']} {where}: {event['text']}{cause}{_by(event)}"


def _by(event: dict[str, Any]) -> str:
    return f" by {event['who']}" if event["who"] else ""


def why(client: Client, options: argparse.Namespace) -> int:
    """Everything that its weight hangs on, or how the service stands."""
    service, destination = options.what
    found = client.get_object(f"{place(service, destination)}/why", "transitions")
    if options.json:
        render.say_json(found)
        return 0
    if destination is None:
        _tell_service(found)
    else:
        _tell_destination(found)
    if found["transitions"]:
        render.say("last events:")
    for event in found["transitions"]:
        render.say(f"  {_line(event)}")
    return 0


def _tell_service(found: dict[str, Any]) -> None:
    state = "draining" if found["desired"]["draining"] else "applied" if found["applied"] else "not applied"
    render.say(f"{found['service']} {found['key']} {state}{_because(found['reason'])}")
    rows = {"refusal": found["refusal"], "warning": found["warning"], "hold": found["hold"], "vip": _vip(found["vip"])}
    _tell_rows(rows)
    for row in found["destinations"]:
        render.say(f"{found['service']}/{row['destination']} {_weight(row)}, {row['state']}{_because(row['reason'])}")
        render.say(f"  decided  by {row['decided']['input']}: {row['decided']['rule']}")


def _vip(vip: dict[str, Any] | None) -> str:
    if vip is None:
        return ""
    there = {"ours": "on the interface", "external": "on this host by other hands"}.get(vip["on_host"], "not on this host")
    wanted = "wanted" if vip["wanted"] else "withdrawn" if vip["withdrawn"] else "not wanted by this service"
    return f"{vip['address']} {there}, {wanted}{_because(vip['failure'])}"


def _tell_destination(found: dict[str, Any]) -> None:
    desired, health, serf, drain = (found[part] for part in ("desired", "health", "serf", "drain"))
    where = render.endpoint(desired["address"], desired["port"])
    render.say(f"{found['service']}/{found['destination']} {where} by {desired['method']}")
    conns = found["kernel"] and f"{found['kernel']['active']} active, {found['kernel']['inactive']} inactive"
    rows = {
        "state": f"{found['state']}{_because(found['reason'])}",
        "weight": _weight(found).removeprefix("weight "),
        "decided": f"by {found['decided']['input']}: {found['decided']['rule']}",
        "hold": found["hold"],
        "asked": f"by {desired['asked_by']}, weight {desired['weight']}, {desired['tier']}",
        "kernel": conns or "not there",
        "health": _check(health),
        "path": _check(found["path"]),
        "serf": serf and f"node {serf['node']} {serf['status']}{_since(serf['since_s'])}",
        "drain": drain and f"{drain['reason']}, cut in {drain['left_s']:.0f} s at the latest",
    }
    _tell_rows(rows)


def _check(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    check = f"{found['check']['kind']} {render.endpoint(found['check']['address'], found['check']['port'])}"
    return f"{check} {found['state']}{_since(found['since_s'])}{_because(found['reason'])}"


def _tell_rows(rows: dict[str, str | None]) -> None:
    for name, text in rows.items():
        if text:
            render.say(f"  {name:<8} {text}")


def _weight(row: dict[str, Any]) -> str:
    has, wanted = ("none" if weight is None else str(weight) for weight in (row["weight"], row["wanted"]))
    return f"weight {has}" if has == wanted else f"weight {has}, wanted {wanted}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _since(since_s: float | None) -> str:
    return "" if since_s is None else f" for {since_s:.0f} s"
