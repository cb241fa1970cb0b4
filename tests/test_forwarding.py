"""docs/forwarding without a kernel: pictures and tables of hops agree, what goes wrong is named in the programs' words."""

from __future__ import annotations

import ast
import re

import pytest

from tests.lab.forwarding import hops, page, rows, section
from tests.lab.transcript import ROOT

METHODS = ("nat", "route", "tunnel")


@pytest.mark.parametrize("method", METHODS)
def test_the_picture_has_the_numbered_hops_of_the_table(method: str) -> None:
    way = section(page(method), "The packet's way")
    drawn = dict(re.findall(r"\((\d)\) (.* → .*)$", way.partition("```text\n")[2].partition("```")[0], re.MULTILINE))
    told = {name: f"{hop.outer} [{hop.packet}]" if hop.outer else hop.packet for name, hop in hops(way).items()}
    assert drawn == {name: text for name, text in told.items() if name.isdigit()}
    assert len(drawn) >= 3


def literals() -> list[str]:
    """Every string in fusisd's sources, and the fixed parts of those that are put together."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "fusisd").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("method", METHODS)
def test_what_goes_wrong_is_named_in_the_programs_own_words(method: str) -> None:
    known, told = literals(), list(rows(section(page(method), "What goes wrong")))
    assert len(told) >= 6
    for row in told:
        for name in re.findall(r"`([a-z_-]+)`$", row["who says it"]):
            assert name in known, row
        parts = [part.strip() for part in row["in these words"].split("…")]
        assert any(parts), row
        for part in parts:
            assert any(part in literal for literal in known), (part, row)
