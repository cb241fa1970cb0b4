"""docs/quickstart.md as a new user types it: each command of the page is run, and prints what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.expect import poll

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/quickstart.md"
LIMIT_S = 60
AGAIN = ("for ", "fusisctl why", "fusisctl services")  # what only looks may be asked again until it is so
MOST_COMMANDS = 5


@dataclass(frozen=True)
class Step:
    """A command of the page, and what it prints there; `…` stands for anything, alone in a line for any lines."""

    command: str
    shown: str

    def fits(self, printed: str) -> bool:
        parts = [re.escape(part) for part in f"\n{self.shown}".split("\n…\n")]
        pattern = r"\n(?:.*\n)*?".join(part.replace("…", ".*") for part in parts)
        return re.fullmatch(pattern, f"\n{printed}") is not None


def blocks() -> list[list[Step]]:
    """The transcripts of the page."""
    found = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [
        [Step(words.replace("sudo ", ""), shown) for words, _, shown in (one.partition("\n") for one in _prompts(block))]
        for block in found
    ]


def _prompts(block: str) -> list[str]:
    return re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """fusisd and fusisctl on the path; afterwards nothing is left, whatever failed."""
    found = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    yield found
    subprocess.run(["sh", "docs/examples/quickstart.sh", "down"], cwd=ROOT, env=found, check=True)


def run(step: Step, environ: dict[str, str]) -> None:
    def once() -> bool:
        words = ["sh", "-c", step.command]
        done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
        assert step.fits(done.stdout), f"$ {step.command}\n{done.stdout}{done.stderr}\nand the page says\n{step.shown}"
        return True

    if step.command.startswith(AGAIN):
        poll(once, LIMIT_S)
    else:
        once()


def test_the_page_prints_what_it_shows(environ: dict[str, str], tmp_path: Path) -> None:
    first, then, away = blocks()
    assert len(first) <= MOST_COMMANDS
    background = next(step for step in first if step.command.endswith("&"))
    log = tmp_path / "log"
    fusisd: subprocess.Popen[bytes] | None = None
    try:
        for step in (*first, *then):
            if step is background:
                with open(log, "wb") as output:
                    words = step.command.removesuffix("&").split()
                    fusisd = subprocess.Popen(words, cwd=ROOT, env=environ, stdout=output, stderr=output)
                poll(lambda: background.fits(log.read_text()), LIMIT_S, "fusisd as the page shows it")
            else:
                run(step, environ)
    finally:
        if fusisd is not None:
            fusisd.terminate()
            assert fusisd.wait(LIMIT_S) == 0
    for step in away:
        run(step, environ)
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    assert not {"lb", "rs1", "rs2"}.intersection(left)


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\nc\n", False),
        ("a\nb\n", "a\nb\nc\n", False),
        ("…\na\n…\n", "x\ny\na\nz\n", True),
        ("…\na\n…\n", "a\n", True),
        ("…\na\n…\n", "x\n", False),
        ("up for … s\n", "up for 3 s\n", True),
        ("", "", True),
        ("", "x\n", False),
    ],
)
def test_what_fits(shown: str, printed: str, fits: bool) -> None:
    assert Step("", shown).fits(printed) is fits
