"""In CI a test that was skipped has failed (tests/conftest.py); elsewhere it is only shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SKIPPED = "import pytest\n@pytest.mark.skip(reason='no kernel')\ndef test_it(): pass\n"
SKIPPED_INSIDE = "import pytest\ndef test_it(): pytest.skip('no kernel')\n"
SKIPPED_MODULE = "import pytest\npytest.skip('no kernel', allow_module_level=True)\n"
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n"


def run_pytest(file: Path, ci: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "-p", "tests.conftest", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "CI": ci, "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("text", [SKIPPED, SKIPPED_INSIDE, SKIPPED_MODULE], ids=["by mark", "inside", "module"])
def test_a_skip_fails_in_ci_and_says_which_and_why(tmp_path: Path, text: str) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(text)
    done = run_pytest(file, ci="true")
    assert done.returncode != 0
    assert "counts as a failure" in done.stdout
    assert "no kernel" in done.stdout


def test_elsewhere_a_skip_is_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(SKIPPED)
    assert run_pytest(file, ci="").returncode == 0


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(EXPECTED_FAILURE)
    assert run_pytest(file, ci="true").returncode == 0
