"""docs/forwarding as data, typed in the lab: the pages' tables of hops, and what passes lb1 and rs1 in the same words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.lab.backends import backends
from tests.lab.capture import Capture, Frame
from tests.lab.expect import poll
from tests.lab.topology import Lab
from tests.lab.transcript import ROOT, Reader, Step, machine, steps

PAGES = ROOT / "docs/forwarding"
ANSWER = "10.1.0.100:80 → 10.9.0.2"
ASK = Step("client", "curl -s http://10.1.0.100/", ("rs1",))

_HOP = re.compile(r"\((\w)\)")


class Hop(NamedTuple):
    """A packet between two hosts, with the header around it ("" without one)."""

    ethernet: str
    outer: str
    packet: str


def page(method: str) -> str:
    """The text of a method's page."""
    return Path(PAGES, f"{method}.md").read_text()


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    below = text.partition(f"\n## {heading}\n")[2]
    assert below, heading
    return below.partition("\n## ")[0]


def rows(text: str) -> Iterator[dict[str, str]]:
    """The rows of all tables, by the headings of their columns."""
    head: list[str] | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head is None:
            head = cells
        elif not line.startswith("|---"):
            yield dict(zip(head, cells, strict=True))


def hops(text: str) -> dict[str, Hop]:
    """The tables of hops, by the letter or number of each."""
    found = [(_HOP.fullmatch(row.get("hop", "")), row) for row in rows(text)]
    return {match[1]: Hop(row["Ethernet"], row.get("outer header", ""), row["packet"]) for match, row in found if match}


@dataclass
class Seen:
    """What was captured so far."""

    names: dict[str, str]
    captures: tuple[Capture, ...]
    frames: set[Frame]

    def hops(self) -> set[Hop]:
        """All different packets so far, hosts by their names."""
        self.frames |= {frame for capture in self.captures for frame in capture.frames()}
        return {self._hop(frame) for frame in self.frames}

    def tunnelled(self) -> set[tuple[int, int]]:
        """Protocol and added bytes of all outer headers so far."""
        return {(frame.protocol, frame.added) for frame in self.frames if frame.outer}

    def offered(self, packet: str) -> set[int]:
        """Each MSS that was offered in such packets."""
        return {frame.mss for frame in self.frames if frame.packet == packet and frame.mss}

    def _hop(self, frame: Frame) -> Hop:
        return Hop(f"{self.names[frame.sender]} → {self.names[frame.receiver]}", frame.outer, frame.packet)


@contextmanager
def seen(lab: Lab) -> Iterator[Seen]:
    """From now on, what passes lb1 and rs1 on port 80."""
    hosts = [lab.router, lab.lb1, *lab.servers]
    with ExitStack() as stack:
        captures = tuple(stack.enter_context(Capture(host)) for host in (lab.lb1, lab.servers[0]))
        yield Seen({lab.mac(host): host.name for host in hosts}, captures, set())


@contextmanager
def reading(home: Path) -> Iterator[tuple[Lab, Reader]]:
    """The pages' network, fusisd running on lb1 and a web server on rs1 and rs2, and somebody at each machine."""
    with Lab(servers=2) as lab, backends(lab.servers), ExitStack() as stack:
        rs1, rs2 = lab.servers
        machines = {host.name: stack.enter_context(machine(host)) for host in (lab.lb1, rs1)}
        for name, host in (("rs2", rs2), ("client", lab.client)):
            machines[name] = lambda command, host=host: host.argv("bash", "-c", command)
        reader = stack.enter_context(Reader(home, machines))
        reader.type(Step("lb1", "fusisd --iface eth0 2>/dev/null &", ("Listening and serving HTTP on :8000",)))
        yield lab, reader


def hold(lab: Lab, reader: Reader, typed: Iterable[Step], wanted: set[Hop]) -> Seen:
    """While these are typed, and a client asks, just these packets pass."""
    with seen(lab) as wire:
        for step in (*typed, ASK):
            reader.type(step)
        poll(lambda: passed(wanted, wire.hops()), 60)
        assert wire.hops() == wanted
        return wire


def passed(wanted: set[Hop], found: set[Hop]) -> bool:
    """Whether all were seen; AssertionError with those that were not, and what was seen besides."""
    assert wanted <= found, f"not seen: {wanted - found}; not in the table: {found - wanted}"
    return True


def read(home: Path, method: str) -> Seen:
    """A whole page: its commands print what it shows, and up to what is done by hand just its packets pass."""
    text = page(method)
    typed = steps(text)
    by_hand = next(number for number, step in enumerate(typed) if step.machine == "rs2" or "web/rs2" in step.command)
    with reading(home) as (lab, reader):
        wire = hold(lab, reader, typed[:by_hand], set(hops(section(text, "The packet's way")).values()))
        for step in typed[by_hand:]:
            reader.type(step)
        reader.finish()
    return wire


def agrees(wire: Seen, mode: str) -> None:
    """The outer headers, and what the server lets clients send, are as the row of this kind of tunnel says."""
    row = kinds()[mode]
    assert wire.tunnelled() == {(int(row["IP protocol of the outer header"]), int(row["bytes added"]))}
    assert wire.offered(ANSWER) == {int(row["MSS that clients are offered (MTU 1500)"])}


def kinds() -> dict[str, dict[str, str]]:
    """The table of the kinds of tunnel, by `--mode`."""
    return {row["`--mode`"]: row for row in rows(section(page("tunnel"), "The kinds"))}
