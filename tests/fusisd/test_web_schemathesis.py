"""schemathesis asks a running fusisd on a fake kernel all that its OpenAPI document allows and forbids, and finds nothing.

EXAMPLES=N for more of each operation, from another seed each time, and every case on the edge of a schema (`make soak`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusisd.web.app import native_routes
from fusisd.web.tokens import Tokens
from tests.fusisd.dry import Dry
from tests.fusisd.web_helpers import TOKEN, MemoryCore

EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
CONFIG = Path(__file__).with_name("schemathesis.toml")
SHORT = ("--seed", "6", "--max-examples", "15", "--phases", "examples,fuzzing,stateful")
WHOLE = ("--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing,stateful")


@pytest.fixture
def dry(tmp_path: Path) -> Iterator[Dry]:
    dry = Dry(tmp_path)
    dry.start()
    yield dry
    dry.close()


def test_it_finds_nothing(dry: Dry) -> None:
    token = (dry.state_dir / "token").read_text().strip()
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color"]
    command += ["run", f"http://127.0.0.1:{dry.port}/v1/openapi.json", "-H", f"Authorization: Bearer {token}"]
    command += [*(WHOLE if EXAMPLES else SHORT), "--continue-on-failure", "--generation-database", "none"]
    done = subprocess.run(command, cwd=dry.home, capture_output=True, text=True, timeout=3600 if EXAMPLES else 300)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = len(native_routes(MemoryCore(), float, Tokens.of(TOKEN))) - 1  # all but the document, which it has read
    assert f"Tested: {asked}" in done.stdout, done.stdout
    log = dry.log.read_text()
    assert "Traceback" not in log, log
