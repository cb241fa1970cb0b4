"""docs/quickstart.md, typed line by line, prints what the page shows, and leaves nothing behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab.transcript import ROOT, Reader, steps

PAGE = (ROOT / "docs/quickstart.md").read_text()
MOST = 5


def left() -> str:
    """What the scene could leave behind."""
    listed = "ip netns; ip -brief link; ls -d /run/fusis-quickstart; pgrep -x -l 'fusisd|serf'"
    return subprocess.run(["sh", "-c", listed], capture_output=True, text=True, timeout=60).stdout


@pytest.mark.guest_only  # it is typed as it stands, into the namespace in which it is run
def test_what_is_typed_prints_what_the_page_shows_and_leaves_nothing(tmp_path: Path) -> None:
    assert len(steps(PAGE.partition("\n## ")[0])) <= MOST, "a service is balanced in five commands"
    before = left()
    try:
        with Reader(tmp_path, {"": lambda command: ["bash", "-c", command]}) as reader:
            for step in steps(PAGE):
                reader.type(step)
            reader.finish()
    finally:
        subprocess.run(["sh", "docs/examples/quickstart.sh", "down"], cwd=ROOT, check=True, timeout=60)
    assert left() == before
