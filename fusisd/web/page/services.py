"""The table of services and their destinations as HTML: pure.

One table, so that figures stand below each other. While all destinations are few they are all shown; of a large table a
row for each service, and of destinations what is wrong. A service alone shows all of its own, by pages.
Does not: judge (standing.py), or know the rest of the page.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from fusisd.model import DestinationKey
from fusisd.ports import DestinationView, Reading
from fusisd.web.page.figures import number, plot, span
from fusisd.web.page.markup import Child, Markup, joined, tag
from fusisd.web.page.standing import BAD, Level, Standing
from fusisd.web.page.trends import Past
from pyipvs import DestinationStatus
from pyipvs.model import endpoint

FEW = 200  # so many destinations in all are shown each with its row
WRONG = 20  # so many rows of what is wrong in one service of a large table
PAGE = 100  # services on a page
ALONE = 200  # destinations on a page of one service

_SHAPES = {
    "up": "●", "partly": "▲", "down": "✕", "failed": "✕", "refused": "✕", "draining": "▽", "checking": "○",
    "preparing": "○", "standby": "◐", "empty": "▲", "not applied": "▲",
}  # fmt: skip
_TONES = {**dict.fromkeys(BAD, "down"), "partly": "attention", "empty": "attention", "not applied": "attention"}
_COLUMNS = (
    ("State", ""), ("Name", ""), ("Address", ""), ("How", ""), ("Weight wanted", "n"), ("Weight in kernel", "n"),
    ("Active", "n"), ("Inactive", "n"), ("Conn/s", "n"), ("In", "n"), ("Out", "n"), ("Last 5 min", "p"), ("Why", "w"),
)  # fmt: skip


class Asked(NamedTuple):
    """Which part of the page is asked for: services in which `text` is found, or one service; page 1 and on."""

    text: str = ""
    service: str = ""
    page: int = 1

    def at(self, page: int) -> str:
        """The address of another page of the same."""
        said = {"q": self.text, "service": self.service, "page": str(page) if page > 1 else ""}
        return "/?" + urlencode({key: value for key, value in said.items() if value})


class Part(NamedTuple):
    """Some of many: from `begin` on (counted from 0), of `total`, and how many fit a page."""

    begin: int
    total: int
    size: int

    @classmethod
    def of(cls, page: int, total: int, size: int) -> Part:
        """That page, or the last one there is."""
        return cls(min(page - 1, max(0, total - 1) // size) * size, total, size)


def found(services: Sequence[Standing], asked: Asked) -> list[Standing]:
    """The services that were asked for."""
    if asked.service:
        return [row for row in services if row.view.name == asked.service]
    return [row for row in services if _matches(row, asked.text.lower())]


def _matches(row: Standing, text: str) -> bool:
    if not text or text in row.view.name.lower() or text in str(row.view.key) or text in row.word:
        return True
    return any(text in one.name.lower() or text in endpoint(one.address, one.port) for one in row.rows)


def table(services: Sequence[Standing], asked: Asked, reading: Reading, past: Past, now_s: float) -> Markup:
    """The rows of these services, and how to come to the others."""
    few = sum(len(row.rows) for row in services) <= FEW
    if asked.service:
        (row,) = services
        part = Part.of(asked.page, len(row.rows), ALONE)
        groups = [_group(row, row.rows[part.begin : part.begin + part.size], reading, past, now_s)]
    else:
        part = Part.of(asked.page, len(services), PAGE)
        shown = services[part.begin : part.begin + part.size]
        groups = [_group(row, _rows_of_many(row, few), reading, past, now_s) for row in shown]
    head = tag("tr", *(tag("th", name, scope="col", class_=kind or None) for name, kind in _COLUMNS))
    return joined([tag("table", tag("thead", head), *groups, class_="services"), _pager(part, asked)])


def _rows_of_many(row: Standing, few: bool) -> tuple[DestinationView, ...]:
    return row.rows if few else tuple(one for one in row.rows if one.state in BAD)[:WRONG]


def _pager(part: Part, asked: Asked) -> Markup | None:
    if part.total <= part.size:
        return None
    page, what = part.begin // part.size + 1, "destinations" if asked.service else "services"
    end = min(part.begin + part.size, part.total)
    return tag(
        "nav",
        tag("a", "← previous", href=asked.at(page - 1), rel="prev") if page > 1 else None,
        tag("span", f"{part.begin + 1}–{end} of {part.total} {what}, what is wrong first"),
        tag("a", "next →", href=asked.at(page + 1), rel="next") if end < part.total else None,
        class_="pager",
        aria_label="pages",
    )


def _group(row: Standing, shown: Sequence[DestinationView], reading: Reading, past: Past, now_s: float) -> Markup:
    entry = reading.entries.get(row.view.key)
    status = {} if entry is None else {(one.destination.address, one.destination.port): one for one in entry.status}
    rows = [_service(row, status, reading, past), *(_destination(row.view.name, one, status, now_s) for one in shown)]
    if len(shown) < len(row.rows) and any(one.state in BAD for one in shown):
        rows.append(_rest(row, len(shown)))
    return tag("tbody", *rows, id=f"s-{row.view.name}")


def _rest(row: Standing, shown: int) -> Markup:
    link = tag("a", f"and {len(row.rows) - shown} more", href=Asked(service=row.view.name).at(1))
    return tag("tr", tag("td", link, colspan=len(_COLUMNS), class_="rest"), class_="destination")


def _service(row: Standing, status: Mapping[DestinationKey, DestinationStatus], reading: Reading, past: Past) -> Markup:
    view, entry = row.view, reading.entries.get(row.view.key)
    stats = None if entry is None else entry.stats
    figures: Sequence[Child] = [None] * 5
    if stats is not None:
        connections = (sum(one.active for one in status.values()), sum(one.inactive for one in status.values()))
        rates = (number(stats.connections_per_s), _bytes(stats.bytes_in_per_s), _bytes(stats.bytes_out_per_s))
        figures = [*map(number, connections), *rates]
    scheduler = view.scheduler + (f", {view.persistence_s} s" if view.persistence_s else "")
    name = tag("a", view.name, href=Asked(service=view.name).at(1))
    served = f"{row.serving} of {len(row.rows)} serving"
    cells = [state(row.word), name, str(view.key), scheduler, None, None, *figures]
    line = plot(past.of(view.key), f"{view.name}: connections a second")
    hint = command("why", view.name) if row.level is not Level.WELL else None
    # which ones fail is told by their own rows below
    said = row.view.reason if any(one.state in BAD for one in row.rows) else row.text
    reason = joined([served, f" · {said} " if said else " ", hint])
    return tag("tr", *_cells([*cells, line, reason]), class_="service", data_level=row.level.value)


def _destination(
    service: str, view: DestinationView, status: Mapping[DestinationKey, DestinationStatus], now_s: float
) -> Markup:
    now = status.get((view.address, view.port))
    figures: Sequence[Child] = [None] * 5
    if now is not None:
        rates = (number(now.stats.connections_per_s), _bytes(now.stats.bytes_in_per_s), _bytes(now.stats.bytes_out_per_s))
        figures = [number(now.active), number(now.inactive), *rates]
    wanted = "–" if view.wanted is None else view.wanted
    kernel = "–" if now is None and not view.weight else view.weight
    cells = [state(view.state), view.name, endpoint(view.address, view.port), str(view.method), wanted, kernel]
    bad = view.state in BAD
    reason = joined(_reason(service, view, now_s))
    level = Level.DOWN if bad else Level.WELL
    key = f"d-{service}/{view.name}"
    return tag("tr", *_cells([*cells, *figures, None, reason]), class_="destination", data_level=level.value, id=key)


def _reason(service: str, view: DestinationView, now_s: float) -> Iterator[Child]:
    parts = [view.reason]
    if view.since_s is not None:
        parts.append(f"for {span(now_s - view.since_s)}")
    if view.drain_left_s is not None:
        parts.append(f"cut in {span(view.drain_left_s)}")
    if view.origin == "serf":
        parts.append("by Serf")
    yield " · ".join(part for part in parts if part)
    if view.state in BAD:
        yield " "
        yield command("why", f"{service}/{view.name}")


def state(word: str, like: str | None = None) -> Markup:
    """A state by shape, word and colour; those of another one when it is like that."""
    like = like or word
    tone = _TONES.get(like, "well" if like == "up" else "plain")
    shape = tag("span", _SHAPES.get(like, "·"), class_="shape", aria_hidden="true")
    return tag("span", shape, f" {word}", class_=f"state {tone}")


def command(*words: str) -> Markup:
    """A command of fusisctl to be copied; quoted, because the name of a node is whatever its owner called it."""
    return tag("code", shlex.join(("fusisctl", *words)))


def _bytes(per_s: int) -> str:
    return number(per_s, "B/s")


def _cells(contents: Sequence[Child]) -> Iterator[Markup]:
    for (label, kind), content in zip(_COLUMNS, contents, strict=True):
        yield tag("td", content, class_=kind or None, data_label=label if content is not None else None)
