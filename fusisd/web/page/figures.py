"""Figures as people read them, and the small plots: pure.

Does not: know what a figure is of.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusisd.web.page.markup import Markup, tag
from fusisd.web.page.trends import KEPT_S, Point

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"))


def number(value: float, unit: str = "") -> str:
    """Three digits and a unit from ten thousand on, so that a column stays narrow: `9 214`, `12.4 k`, `1.03 MB/s`."""
    limit = 1e3 if unit else 1e4
    for size, letter in _UNITS:
        if value >= max(size, limit):
            scaled = value / size
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{digits}f} {letter}{unit}"
    if not value:
        return "0"
    shown = f"{value:.1f}" if 0 < value < 10 and value != int(value) else f"{value:.0f}"
    return f"{shown} {unit}".rstrip()


def span(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`, `5 d`: coarse, so that it changes seldom."""
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def plot(points: Sequence[Point], what: str, unit: str = "", width: int = 120, height: int = 18) -> Markup:
    """The last minutes as a line, now at its right end; in words for who does not see it."""
    if len(points) < 2:
        return tag("span", "–", class_="dim", title="a plot begins when somebody looks")
    top = max(value for _, value in points)
    minutes = f"{KEPT_S / 60:.0f} minutes"
    said = f"{what}, last {minutes}: now {number(points[-1][1], unit)}, at most {number(top, unit)}"
    scale = (height - 3) / (top or 1.0)
    steps = (width - 2) / KEPT_S
    places = [f"{width - 1 - age_s * steps:.0f},{height - 1.5 - value * scale:.1f}" for age_s, value in points]
    if not top:
        places = [places[0], places[-1]]
    line = tag("polyline", points=" ".join(places))
    size: dict[str, str | int] = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    return tag("svg", tag("title", said), line, class_="plot", role="img", aria_label=said, **size)
