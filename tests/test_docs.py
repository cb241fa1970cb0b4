"""The documents tell the truth: every option is documented, every command that the README names exists."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyipvs
from fusisd.health.states import diagram

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def usage(module: str, *words: str) -> str:
    command = [sys.executable, "-m", module, *words, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(
    "words", [("fusisd",), ("fusisd.agent",), ("fusisd.ctl",), ("fusisd.ctl", "join-command"), ("fusisd.ctl", "status")]
)
def test_every_option_is_in_the_documents(words: tuple[str, ...]) -> None:
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", usage(*words))) - {"--help"}
    assert {option for option in options if f"`{option}" not in DOCS} == set()


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README)) - {"git"}
    assert named
    assert named <= targets


def test_the_examples_of_the_library_run() -> None:
    results = doctest.testmod(pyipvs, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted >= 5
    assert results.failed == 0


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_life_of_a_check_is_drawn_from_its_table() -> None:
    assert diagram().strip() in (ROOT / "docs/reliability.md").read_text()
