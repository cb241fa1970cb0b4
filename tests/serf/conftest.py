"""Tests on real Serf agents (Debian package serf), on loopback addresses of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fusisd.dry import Dry
from tests.serf.agents import Agents


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("serf") is None:
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="apt-get install serf"))


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    """Starts real agents; ends those it started."""
    with Agents(tmp_path) as running:
        yield running


@pytest.fixture
def dry(tmp_path: Path) -> Iterator[Dry]:
    """A fusisd without a kernel, to be started."""
    running = Dry(tmp_path)
    yield running
    running.close()
