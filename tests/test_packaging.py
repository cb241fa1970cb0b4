"""What a user installs: the library alone pulls nothing, the extra brings the daemon, and its absence is explained."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT_S = 300


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=LIMIT_S, cwd="/")
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel alone."""
    base = tmp_path_factory.mktemp("packaging")
    source = base / "source"
    for package in ("pyipvs", "fusisd"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", base / "wheel", source)
    venv.create(base / "venv", with_pip=True)
    run(python(base), "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel(base))
    return base


def python(home: Path) -> Path:
    return home / "venv/bin/python"


def wheel(home: Path) -> Path:
    (found,) = (home / "wheel").glob("pyipvs-*.whl")
    return found


def test_the_wheel_holds_both_packages_typed_their_licence_and_nothing_else(home: Path) -> None:
    names = zipfile.ZipFile(wheel(home)).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition("-")[0] if top.endswith(".dist-info") else top for top in tops} == {"pyipvs", "fusisd"}
    assert {"pyipvs/py.typed", "fusisd/py.typed"} <= set(names)
    modules = {str(path.relative_to(ROOT)) for package in ("pyipvs", "fusisd") for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    page = "fusisd/web/page/"
    assert {f"{page}status.js", f"{page}status.css", f"{page}status-well.svg"} <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_library_alone_pulls_no_dependency_and_imports(home: Path) -> None:
    listed = run(python(home), "-m", "pip", "list", "--disable-pip-version-check", "--format=freeze").stdout.lower()
    names = {line.partition("==")[0] for line in listed.splitlines()}
    assert names - {"pip", "setuptools"} == {"pyipvs"}
    run(python(home), "-c", "import pyipvs, pyipvs.testing; print(pyipvs.IPVS)")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("fusisd", ["--dry-run"]),
        ("fusis-agent", ["--balancer", "10.0.0.1", "--key-file", "/nosuch", "--service", "web", "--port", "80"]),
    ],
)
def test_without_the_extra_a_command_says_how_to_get_it(home: Path, command: str, options: list[str]) -> None:
    done = run(home / "venv/bin" / command, *options, check=False)
    assert done.returncode == 1
    assert "pip install 'pyipvs[fusisd]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra_fusisctl_asks_a_balancer_all_the_same(home: Path) -> None:
    done = run(home / "venv/bin/fusisctl", "--socket", home / "none.sock", "status", check=False)
    assert done.returncode == 1
    assert f"{home}/none.sock" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_the_extra_every_command_shows_its_help(home: Path) -> None:
    run(python(home), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel(home)}[fusisd]")
    for command in ("fusisd", "fusis-agent", "fusisctl"):
        assert "usage:" in run(home / "venv/bin" / command, "--help").stdout
    run(python(home), "-c", "import fusisd.daemon, fusisd.agent.agent, fusisd.ctl.client")
