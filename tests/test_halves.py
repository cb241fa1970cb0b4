"""The kernel tests in two halves: no file is left out or run twice, and no failure is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.conftest import pytest_ignore_collect
from tests.lab.halves import status


def test_every_file_is_in_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(Path(__file__).parent.joinpath("kernel").glob("test_*.py"))
    chosen = []
    for half in ("0", "1"):
        monkeypatch.setenv("KERNEL_HALF", half)
        chosen += [file for file in files if pytest_ignore_collect(file) is None]
    assert sorted(chosen) == files


BOTH = [([0, 0], 0), ([0, 1], 1), ([124, 0], 124), ([5, 0], 0), ([5, 1], 1), ([5, 5], 5)]  # 5: nothing was chosen


@pytest.mark.parametrize(("both", "expected"), BOTH)
def test_the_status_is_the_first_failure_s(both: list[int], expected: int) -> None:
    assert status(both) == expected
