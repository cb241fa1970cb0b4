"""docs/forwarding/tunnel.md, the other kinds of tunnel: packets and MSS are as their rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.forwarding import agrees, hold, hops, kinds, page, reading, section
from tests.lab.transcript import Step, steps


@pytest.mark.guest_only  # modules are loaded, and agents write where they do on a real machine
@pytest.mark.parametrize("mode", sorted(kinds().keys() - {"ipip"}))
def test_the_outer_header_alone_is_another_one(tmp_path: Path, mode: str) -> None:
    text = page("tunnel")
    typed = [of_kind(step, mode) for step in steps(text) if step.machine in ("lb1", "rs1")][:3]
    with reading(tmp_path) as (lab, reader):
        agrees(hold(lab, reader, typed, set(hops(section(text, "The packet's way")).values())), mode)


def of_kind(step: Step, mode: str) -> Step:
    """What the page has for ipip, for another kind."""
    return Step(step.machine, step.command.replace("ipip", mode), tuple(line.replace("ipip", mode) for line in step.shown))
