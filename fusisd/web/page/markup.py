"""HTML as values: a text is escaped unless it is Markup, and Markup is made here only.

Names of nodes and what is in their tags come from whoever joins by Serf, so that nothing may depend on remembering to
escape. Does not: know the page.
"""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


Child = str | int | None
"""A text, a figure, or nothing."""

_VOID = frozenset({"meta", "link", "input", "br"})  # they have no end tag


def _written(child: Child) -> str:
    if child is None:
        return ""
    return child if type(child) is Markup else html.escape(str(child))


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """An element. Attributes: `class_` is `class`, `data_key` is `data-key`; True stands alone, False and None are
    left out."""
    written = [
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    head = f"<{name}{''.join(written)}>"
    return Markup(head if name in _VOID else f"{head}{''.join(map(_written, children))}</{name}>")


def joined(children: Iterable[Child]) -> Markup:
    """One after the other."""
    return Markup("".join(map(_written, children)))
