"""The documents tell the truth: every option is documented, every command that the README names exists."""

from __future__ import annotations

import argparse
import doctest
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pyipvs
from fusisd import drains, nodes
from fusisd.health import states
from fusisd.web.app import native_routes
from fusisd.web.tokens import Tokens
from pyipvs import cli
from pyipvs.testing import FakeKernel
from tests import man
from tests.fusisd.web_helpers import TOKEN, MemoryCore

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def usage(module: str, *words: str) -> str:
    command = [sys.executable, "-m", module, *words, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


CTL = ("status", "services", "why", "drain", "undrain", "drains", "adopt", "release", "pause", "settings", "export")
CTL += ("events", "withdraw", "plan", "apply", "doctor", "completion")
CTL += ("import", "join-command", "service add", "service edit", "service delete", "destination add", "destination edit")
CTL += ("serf rotate-key", "token list", "token rotate")
AGENT = ("run", "status", "drain", "maint", "ready", "weight", "doctor", "undo")
PROGRAMS = [("fusisd",), ("fusisd.ctl",), *(("fusisd.agent", word) for word in AGENT)]
PROGRAMS += [("fusisd.ctl", *words.split()) for words in CTL]


@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_every_option_is_in_the_documents(words: tuple[str, ...]) -> None:
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", usage(*words))) - {"--help"}
    assert {option for option in options if f"`{option}" not in DOCS} == set()


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """(`pyipvs list`, `--stats`) and so on; "" for the command itself."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options_of(below)
        elif action.help != argparse.SUPPRESS:
            yield from ((parser.prog, option) for option in action.option_strings if option not in ("-h", "--help"))
    if not any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        yield parser.prog, ""


def test_every_command_and_option_of_pyipvs_is_in_its_row() -> None:
    section = (ROOT / "docs/commands.md").read_text().partition("\n## pyipvs\n")[2].partition("\n## ")[0]
    found = set(options_of(cli._parser()))
    assert len(found) > 50
    for command, option in found:
        rows = [line for line in section.splitlines() if re.search(rf"`{command}\b", line)]
        assert rows, command
        everywhere = option == "--netns" or command == "pyipvs"
        assert option in section if everywhere else any(not option or f"`{option}" in row for row in rows), (command, option)


@pytest.mark.parametrize("page", man.pages(), ids=lambda page: page.path.name)
def test_a_man_page_tells_of_every_option_and_command_and_of_no_other(page: man.Page) -> None:
    """`python -m tests.man` writes them."""
    text = page.path.read_text().replace("\\-", "-")
    known = set(options_of(page.parser))
    assert {found for found in re.findall(r"(?m)^\.B (?:-\w(?: \S+)?, )?(--[a-z-]+)", text)} == {
        option for _, option in known if option.startswith("--")
    }
    commands = {command for command, option in known if not option and command != page.parser.prog}
    assert {command for command in commands if not re.search(rf"(?m)^\.SS {command}\b", text)} == set()


def test_every_environment_variable_is_in_a_man_page() -> None:
    sources = [path.read_text() for path in sorted((ROOT / "fusisd").rglob("*.py"))]
    names = {name for source in sources if "os.environ" in source for name in re.findall(r'"([A-Z]+_[A-Z]+)"', source)}
    assert "LISTEN_FDNAMES" in names
    pages = "".join(page.path.read_text() for page in man.pages())
    assert {name for name in names if name not in pages} == set()


def test_every_route_of_the_native_api_is_in_its_document() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for route in native_routes(MemoryCore(), float, Tokens.of(TOKEN)):
        shown = re.sub("<[a-z]+>", "{name}", route.path)
        assert re.search(rf"`{route.method}\b[^|]*{re.escape(shown)}`", text), f"{route.method} {shown}"


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README)) - {"git"}
    assert named
    assert named <= targets


def test_the_examples_of_the_library_run() -> None:
    results = doctest.testmod(pyipvs, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted >= 5
    assert results.failed == 0


def test_the_session_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, real = FakeKernel(), pyipvs.IPVS
    monkeypatch.setattr(pyipvs, "IPVS", lambda: real(transport=kernel))
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for block in blocks:
        runner.run(doctest.DocTestParser().get_doctest(block, {}, "README.md", None, 0))
    assert (runner.tries > 3, runner.failures) == (True, 0)


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


@pytest.mark.parametrize("machine", [states, nodes, drains], ids=lambda machine: machine.__name__)
def test_a_life_is_drawn_from_its_table(machine: ModuleType) -> None:
    assert f"```mermaid\n{machine.diagram()}```\n" in (ROOT / "docs/reliability.md").read_text()
