"""The page as HTML, from what is published: pure.

`main` is what changes while it is open: its script asks for the page again and takes over what differs there.
Does not: read a clock, ask the core, or know HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fusisd.events import Event
from fusisd.ports import Reading, ServiceView
from fusisd.web.page.figures import number, plot, span
from fusisd.web.page.markup import Child, Markup, joined, tag
from fusisd.web.page.services import Asked, command, found, state, table
from fusisd.web.page.standing import Level, Overview, Standing, Trouble
from fusisd.web.page.trends import Past

SHOWN = 12  # so many things that are wrong are told at the top
NODES = 100
FOREIGN = 100
RELOAD_S = 10  # without the script

_SHAPES = {Level.WELL: "●", Level.ATTENTION: "▲", Level.DOWN: "✕"}
_STANDS = {"alive": "up", "failed": "failed", "left": "draining", "leaving": "draining"}


class Drawn(NamedTuple):
    """What the page is drawn from."""

    overview: Overview
    reading: Reading
    past: Past
    host: str
    """The balancer's name."""
    now_s: float
    """By the clock that the snapshot's times are of."""


def main_part(drawn: Drawn, events: Sequence[Event], asked: Asked) -> Markup:
    """What changes; the events are those to show, oldest first."""
    overview, services = drawn.overview, found(drawn.overview.services, asked)
    return tag(
        "main",
        _glance(drawn),
        _services(drawn, services, asked),
        *([] if asked.service else [_drains(overview.status), _nodes(overview.status), _foreign(overview.foreign)]),
        _events(events, asked),
        id="main",
        data_level=overview.level.value,
    )


def document(main: Markup, drawn: Drawn, asked: Asked, version: str, time: str) -> Markup:
    """The whole page around its main part; `version` tells one script and style from another."""
    overview, host = drawn.overview, drawn.host
    level, status = overview.level, overview.status
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{_SHAPES[level]} {overview.headline} – {host} – Fusis"),
        tag("link", rel="icon", id="icon", href=f"/status-{level.value}.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href=f"/status.css?{version}"),
        tag("script", src=f"/status.js?{version}", defer=True),
        tag("noscript", tag("meta", http_equiv="refresh", content=str(RELOAD_S))),
    )
    dry = "dry run: no packet is balanced" if status.get("dry_run") else ""
    said = " · ".join(str(word) for word in (status.get("version"), status.get("iface"), dry) if word)
    header = tag(
        "header",
        tag("a", tag("b", "Fusis"), " ", host, href="/", class_="brand"),
        tag("span", said, class_="dim"),
        _search(asked),
        tag("span", f"as of {time} UTC", id="live", role="status", class_="dim"),
        tag("button", "Pause", type="button", id="pause", hidden=True),
    )
    skip = tag("a", "To the services", href="#services", class_="skip")
    body = tag("body", skip, header, main, _footer())
    return joined([Markup("<!doctype html>"), tag("html", head, body, lang="en", data_version=version)])


def _search(asked: Asked) -> Markup:
    field = tag("input", type="search", name="q", value=asked.text or None, placeholder="Find (press /)", id="find",
                aria_label="Find a service, destination or address", autocomplete="off", maxlength=64)  # fmt: skip
    return tag("form", field, action="/", method="get", role="search")


def _footer() -> Markup:
    commands = (("status",), ("events", "-f"), ("why", "SERVICE/DESTINATION"))
    more = ("/v1/services", "/status", "/metrics")
    return tag(
        "footer",
        "This page only shows. ",
        *(Markup(f"{command(*row)} ") for row in commands),
        *(Markup(f"{tag('a', path, href=path)} ") for path in more),
    )


# The parts of main.


def _glance(drawn: Drawn) -> Markup:
    overview = drawn.overview
    shape = tag("span", _SHAPES[overview.level], class_="shape", aria_hidden="true")
    lines = [_trouble(row) for row in overview.troubles[:SHOWN]]
    if len(overview.troubles) > SHOWN:
        lines.append(tag("li", f"and {len(overview.troubles) - SHOWN} more, below"))
    notes = [tag("li", text) for text in overview.status.get("warnings", ())]
    return tag(
        "section",
        tag("h1", shape, " ", tag("span", overview.headline), role="status"),
        tag("ul", *lines, class_="troubles") if lines else None,
        _first_step() if not overview.services else None,
        tag("dl", *_figures(drawn)),
        tag("details", tag("summary", "To know"), tag("ul", *notes), id="notes", open=True) if notes else None,
        id="glance",
    )


def _trouble(trouble: Trouble) -> Markup:
    shape = tag("span", _SHAPES[trouble.level], class_="shape", aria_hidden="true")
    text: Child = trouble.text
    if trouble.service:
        text = tag("a", trouble.text, href=Asked(service=trouble.service).at(1))
    return tag("li", shape, " ", text, data_level=trouble.level.value)


def _first_step() -> Markup:
    first = command("service", "add", "web", "--address", "10.0.0.100", "--port", "80")
    return tag("p", "Nothing is balanced by fusisd. Begin with ", first)


def _figures(drawn: Drawn) -> Iterable[Markup]:
    overview, past = drawn.overview, drawn.past
    entries = [drawn.reading.entries.get(row.view.key) for row in overview.services]
    counted = [entry.stats for entry in entries if entry is not None and entry.stats is not None]
    nodes = overview.status.get("nodes", ())
    serving, total = sum(row.serving for row in overview.services), sum(len(row.rows) for row in overview.services)
    connections = sum(stats.connections_per_s for stats in counted)
    volume = sum(stats.bytes_in_per_s + stats.bytes_out_per_s for stats in counted)
    yield _figure("Services", str(len(overview.services)))
    yield _figure("Destinations serving", f"{serving} of {total}")
    if nodes:
        yield _figure("Nodes alive", f"{sum(node['status'] == 'alive' for node in nodes)} of {len(nodes)}")
    yield _figure("VIPs here", str(len(overview.status.get("vips", ())) + len(overview.status.get("external_vips", ()))))
    yield _figure("Connections", number(connections, "/s"), plot(past.connections(), "connections a second", "/s", 160, 24))
    yield _figure("Bytes, in and out", number(volume, "B/s"), plot(past.volume(), "bytes a second", "B/s", 160, 24))


def _figure(name: str, value: str, line: Markup | None = None) -> Markup:
    return tag("div", tag("dt", name), tag("dd", tag("span", value), line))


def _services(drawn: Drawn, services: Sequence[Standing], asked: Asked) -> Markup:
    head: list[Child] = ["Services"]
    back = Markup(f" {tag('a', '← all services', href='/')}")
    if asked.service:
        head = [f"Service {asked.service}", back]
    elif asked.text:
        head = [f"Services with “{asked.text}”: {len(services)}", back]
    if services:
        rows: Markup = table(services, asked, drawn.reading, drawn.past, drawn.now_s)
    else:
        rows = tag("p", f"There is no service {asked.service}." if asked.service else "None.", class_="dim")
    commands = _commands(asked.service) if asked.service and services else None
    return tag("section", tag("h2", *head), commands, rows, id="services")


def _commands(service: str) -> Markup:
    rows = (("why", service), ("drain", f"{service}/DESTINATION", "--wait"), ("events", "-f", "--service", service))
    return tag("p", *(Markup(f"{command(*row)} ") for row in rows))


def _drains(status: Mapping[str, Any]) -> Markup | None:
    drains = status.get("drains", ())
    rows = [_drain(row) for row in drains]
    return _section("drains", "Drains", ("What", "Time left", "To take it back"), rows) if rows else None


def _drain(row: Mapping[str, Any]) -> tuple[Child, ...]:
    what = row["service"] if row["destination"] is None else f"{row['service']}/{row['destination']}"
    return what, f"cut in {span(row['left_s'])}", command("undrain", what)


def _nodes(status: Mapping[str, Any]) -> Markup | None:
    nodes = sorted(status.get("nodes", ()), key=lambda node: (_is_well(node), node["name"]))
    rows = [_node(node) for node in nodes[:NODES]]
    if len(nodes) > NODES:
        rows.append((None, f"and {len(nodes) - NODES} more", None, None, None, None))
    return _section("nodes", "Nodes", ("Serf", "Name", "Address", "For", "Offers", "Why"), rows) if rows else None


def _is_well(node: Mapping[str, Any]) -> bool:
    return node["status"] == "alive" and not node["problems"]


def _node(node: Mapping[str, Any]) -> tuple[Child, ...]:
    missing = ["its Serf agent does not list it at present"] if node["missing"] else []
    word = str(node["status"])
    why = "; ".join([*missing, *node["problems"]])
    offers = ", ".join(node["services"])
    return state(word, _STANDS.get(word)), node["name"], node["address"], span(node["since_s"]), offers, why


def _foreign(views: Sequence[ServiceView]) -> Markup | None:
    rows: list[tuple[Child, ...]] = [
        (str(view.key), view.scheduler, len(view.destinations), command("adopt", str(view.key), "NAME"))
        for view in views[:FOREIGN]
    ]
    if len(views) > FOREIGN:
        rows.append((f"and {len(views) - FOREIGN} more", None, None, None))
    title = "Not ours: in the kernel by another hand, shown and never touched"
    return _section("foreign", title, ("Service", "Scheduler", "Destinations", "To make it ours"), rows) if rows else None


def _events(events: Sequence[Event], asked: Asked) -> Markup:
    rows = [
        (
            tag("time", event.time[11:19], datetime=event.time, title=event.time),
            event.kind,
            _subject(event),
            event.text,
            " · ".join(word for word in (event.cause, event.who) if word),
        )
        for event in reversed(events)
    ]
    title = f"Events of {asked.service} (UTC)" if asked.service else "Events (UTC)"
    return _section("events", title, ("Time", "Kind", "Of", "What", "Why and who"), rows)


def _subject(event: Event) -> str:
    named = "/".join(word for word in (event.service, event.destination) if word)
    return " ".join(word for word in (named, event.node) if word)


def _section(id_: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Child]]) -> Markup:
    head = tag("tr", *(tag("th", name, scope="col") for name in columns))
    body = [tag("tr", *(tag("td", cell, data_label=name) for name, cell in zip(columns, row, strict=True))) for row in rows]
    content = tag("table", tag("thead", head), tag("tbody", *body)) if rows else tag("p", "None yet.", class_="dim")
    return tag("section", tag("h2", title), content, id=id_)
