"""docs/forwarding/nat.md: its commands print what it shows, and the packets are those of its tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.forwarding import hold, hops, page, read, reading, section
from tests.lab.transcript import Step, steps

pytestmark = pytest.mark.guest_only  # agents write where they do on a real machine


def test_the_page_s_commands_print_what_it_shows_and_its_packets_pass(tmp_path: Path) -> None:
    read(tmp_path, "nat")


def test_by_nat_with_the_way_back_the_server_sees_the_client(tmp_path: Path) -> None:
    text = page("nat")
    below = section(text, "The server shall see the client")
    command = re.findall(r"^    (fusis-agent .*)$", below, re.MULTILINE)[0]
    service = next(step for step in steps(text) if "service add" in step.command)
    with reading(tmp_path) as (lab, reader):
        reader.type(Step("lb1", "cat /var/lib/fusisd/serf/key", ("…",)))
        reader.type(Step("rs1", f"umask 077; echo {reader.printed[-1]} >/etc/fusis/key"))
        joined = Step("rs1", command, ("fusis-agent: web on 10.1.0.11:80 (nat, weight 1) joined 10.1.0.2",))
        hold(lab, reader, [service, joined], set(hops(below).values()))
