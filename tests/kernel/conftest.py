"""Kernel tests run in the lab (`python -m tests.lab.run --auto -- python -m pytest tests/kernel`).

Elsewhere they are skipped with the reason, unless CI is set: there a skipped real test is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyipvs import IPVS
from tests.lab.topology import Host, Lab, make_netns

_IN_LAB = os.environ.get("LAB") in ("guest", "host")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Every second file is the other half's, where tests/lab/halves.py runs two."""
    half = os.environ.get("KERNEL_HALF")
    if half is None or not collection_path.name.startswith("test_"):
        return None
    files = sorted(path.name for path in Path(__file__).parent.glob("test_*.py"))
    return files.index(collection_path.name) % 2 != int(half) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("LAB") == "host":  # what would disturb the host is for the guest alone
        dangerous = [item for item in items if item.get_closest_marker("guest_only")]
        config.hook.pytest_deselected(items=dangerous)
        items[:] = [item for item in items if item not in dangerous]
    if _IN_LAB:
        return
    here = Path(__file__).parent
    reason = "needs the lab: make test-kernel"
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def netns() -> Iterator[Host]:
    """A fresh network namespace with lo up."""
    with make_netns("t") as host:
        yield host


@pytest.fixture
def ipvs(netns: Host) -> Iterator[IPVS]:
    """A handle on the empty table of a fresh namespace."""
    with IPVS(netns=netns.name) as handle:
        yield handle


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The whole network, once per module."""
    with Lab() as built:
        yield built
