"""docs/fusis-agent.service, read by systemd itself. (Its user and capability: tests/kernel/test_agent_methods.py.)"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "docs/fusis-agent.service"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def complaints(home: Path, text: str) -> str:
    """What systemd says of a unit, with a command that is there: an unknown key does not change its status."""
    unit = home / UNIT.name
    unit.write_text(text.replace("/opt/fusis/bin/fusis-agent", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_systemd_has_nothing_to_say_of_the_unit(tmp_path: Path) -> None:
    assert complaints(tmp_path, UNIT.read_text()) == ""


@pytest.mark.parametrize("key", ["KillMode", "RestartKillSignal", "AmbientCapabilities"])
def test_it_would_say_so_of_a_mistyped_line(tmp_path: Path, key: str) -> None:
    """Those that keep a restart from draining, and the one that gives the agent its capability."""
    text = UNIT.read_text()
    assert f"\n{key}=" in text
    assert f"{key}s" in complaints(tmp_path, text.replace(f"\n{key}=", f"\n{key}s="))
