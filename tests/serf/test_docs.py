"""The examples of docs/serf.md run on a real agent and print what one would expect."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serf.agents import Agents

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serf.md").read_text(), re.DOTALL)


@pytest.fixture
def where(agents: Agents) -> tuple[str, int]:
    async def ready() -> None:
        await (await agents.client(1)).close()

    found = agents.start(1)
    asyncio.run(ready())
    return found


def test_the_examples_run(where: tuple[str, int]) -> None:
    host, port = where
    said = []
    for example in EXAMPLES:
        assert '"127.0.0.1", 7373' in example
        code = example.replace('"127.0.0.1", 7373', f'"{host}", {port}')
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout.splitlines())
    verbs, watched, plain = said
    refused = "Encoded length of tags exceeds limit of 512 bytes"
    assert verbs == [f"n1 {host} alive 80/nat/2", refused, "[QueryAck(sender='n1')]"]
    assert watched == ["connection 1: n1 is alive", "enough"]
    assert plain == ["['n1']"]
