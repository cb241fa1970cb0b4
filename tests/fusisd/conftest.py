"""Fixtures of more than one test file here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fusisd.web_helpers import PEM


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """A certificate and its key that only we can read."""
    path = tmp_path / "one.pem"
    shutil.copy(PEM, path)
    path.chmod(0o600)
    return path
