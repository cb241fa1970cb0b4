"""For every test: in CI (environment variable CI) a skipped test is a failure, so that nothing real is left out silently."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code: never a reason to fail.
settings.register_profile("fusis", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fusis")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that was skipped, by mark, fixture or call."""
    report = yield
    if not hasattr(report, "wasxfail"):  # an expected failure is reported as a skip too
        _fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module that was skipped while it was imported."""
    report = yield
    _fail_in_ci(report)
    return report


def _fail_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, which CI counts as a failure: {report.longrepr}"
