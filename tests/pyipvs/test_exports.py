"""The public face: small, pinned, and its example runs."""

from __future__ import annotations

import ast
import doctest
from pathlib import Path

import pyipvs


def test_the_public_names_are_these_and_no_more() -> None:
    assert pyipvs.__all__ == [
        "IPVS",
        "AddDestination",
        "AddService",
        "AlreadyExists",
        "BatchError",
        "Change",
        "ChangeList",
        "Connection",
        "CpuStatistics",
        "Daemon",
        "DaemonNotFound",
        "DaemonState",
        "DecodeError",
        "DeleteDestination",
        "DeleteService",
        "Destination",
        "DestinationNotFound",
        "DestinationStatus",
        "Failure",
        "Family",
        "ForwardingMethod",
        "IPVSError",
        "LibraryMissing",
        "ModuleMissing",
        "PermissionDenied",
        "Protocol",
        "Rates",
        "Ruleset",
        "Sample",
        "SaveFileError",
        "SchedulerNotFound",
        "Service",
        "ServiceFlags",
        "ServiceKey",
        "ServiceNotFound",
        "ServiceStatus",
        "Stats",
        "TableProbe",
        "TimedOut",
        "Timeouts",
        "Tunnel",
        "TunnelType",
        "UpdateDestination",
        "UpdateService",
        "connections",
        "cpu_statistics",
        "diff",
        "network_namespace",
        "set_sysctl",
        "sysctl",
        "sysctls",
    ]


def test_the_example_in_the_documentation_runs() -> None:
    failed, tried = doctest.testmod(pyipvs, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert tried >= 8
    assert failed == 0


def test_only_one_file_knows_ctypes() -> None:
    package = Path(pyipvs.__file__).parent
    knowing = {
        path.name
        for path in package.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and "ctypes" in [alias.name for alias in node.names]
    }
    assert knowing == {"_libnl.py"}


def test_every_module_is_documented_and_says_what_it_does_not_do() -> None:
    for path in Path(pyipvs.__file__).parent.glob("*.py"):
        assert "Does not:" in (ast.get_docstring(ast.parse(path.read_text())) or ""), path.name
