"""Which file may do what: the rules of docs/architecture.md that import-linter cannot say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for package in ("pyipvs", "fusisd") for path in (ROOT / package).rglob("*.py"))
SOURCES = {path: (ROOT / path).read_text() for path in FILES}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}

ONLY = {
    "ctypes": ("pyipvs/_libnl.py",),
    "threading": ("fusisd/web/",),
    "concurrent": ("fusisd/bridge.py", "fusisd/store/thread.py", "fusisd/kernel/host.py"),
    "subprocess": ("fusisd/kernel/command.py", "fusisd/agent/"),
    "msgpack": ("fusisd/serf/protocol.py",),
    "bottle": ("fusisd/web/",),
    "cheroot": ("fusisd/web/",),
    "sqlite3": ("fusisd/store/",),
    "prometheus_client": ("fusisd/web/collector.py",),
    "time": ("fusisd/daemon.py", "fusisd/web/", "fusisd/ctl/", "pyipvs/netlink.py", "pyipvs/watch.py", "pyipvs/top.py"),
}
# Other ways to begin a process, which no import of subprocess gives away.
STARTERS = {"posix_spawn", "posix_spawnp", "fork", "forkpty", "system", "popen"}
STARTERS |= {"create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "subprocess_shell"}
# The agent outlives us, so nothing may wait for it; a script drops its privileges before exec and never outlives its check.
MAY_START = ("fusisd/serf/supervisor.py", "fusisd/health/script.py")
MAY_PRINT = ("pyipvs/cli.py", "pyipvs/commands.py")
MAY_PRINT += ("fusisd/__main__.py", "fusisd/daemon.py", "fusisd/ctl/render.py", "fusisd/agent/")
SPEAKS_TO_IPVS = ("fusisd/daemon.py", "fusisd/kernel/")  # the daemon makes the handle, the kernel room uses it
EDGES = ["fusisd/control.py", "fusisd/health/monitor.py", "fusisd/web/app.py"]
SOFT_LIMIT = 400


def within(path: Path, rooms: tuple[str, ...]) -> bool:
    return any(str(path) == room or (room.endswith("/") and str(path).startswith(room)) for room in rooms)


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def words(tree: ast.AST) -> Iterator[str]:
    """Every name that the code uses, imports or takes from something."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.alias(name=word):
                yield word


def outside(rooms: tuple[str, ...], used: set[str]) -> list[str]:
    """The files beyond these rooms that use one of these words."""
    return [str(path) for path, tree in TREES.items() if not within(path, rooms) and used & set(words(tree))]


@pytest.mark.parametrize("module", ONLY)
def test_a_module_is_imported_only_where_it_belongs(module: str) -> None:
    importers = [path for path, tree in TREES.items() if module in imported(tree)]
    assert [str(path) for path in importers if not within(path, ONLY[module])] == []
    idle = [room for room in ONLY[module] if not any(within(path, (room,)) for path in importers)]
    assert idle == [], "may, but does not: take it out of the table"


def test_only_the_supervisor_and_script_checks_start_processes_by_other_means() -> None:
    assert outside(MAY_START, STARTERS) == []


def test_only_commands_print() -> None:
    assert outside(MAY_PRINT, {"print"}) == []


def test_only_the_kernel_room_uses_pyipvs_verbs() -> None:
    assert [name for name in outside(SPEAKS_TO_IPVS, {"IPVS"}) if name.startswith("fusisd/")] == []


def caught(handler: ast.ExceptHandler) -> set[str]:
    """The classes that a handler names; a bare `except:` is one of BaseException."""
    if handler.type is None:
        return {"BaseException"}
    return {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}


def swallowing(tree: ast.AST) -> Iterator[ast.ExceptHandler]:
    """Handlers of everything that do not raise it again."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and caught(node) & {"Exception", "BaseException"}:
            last = node.body[-1]
            if not (isinstance(last, ast.Raise) and last.exc is None):
                yield node


def test_everything_is_caught_at_the_three_edges_only() -> None:
    assert [str(path) for path, tree in TREES.items() for _ in swallowing(tree)] == EDGES


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_logs_with_its_traceback_and_says_why_it_is_there(edge: str) -> None:
    (handler,) = swallowing(TREES[Path(edge)])
    assert "exception" in set(words(ast.Module(handler.body, []))), "log.exception"
    assert "  # " in SOURCES[Path(edge)].splitlines()[handler.lineno - 1]


def test_nothing_is_suppressed_wholesale() -> None:
    calls = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    suppressing = [(path, call) for path, call in calls if "suppress" in words(call.func)]
    assert suppressing, "contextlib.suppress is used, so this test has something to look at"
    for path, call in suppressing:
        what = {word for argument in call.args for word in words(argument)}
        assert not what & {"Exception", "BaseException"}, f"{path}:{call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    assert path.name == "const.py" or SOURCES[path].count("\n") <= SOFT_LIMIT, "which two nouns live in it?"
    assert ast.get_docstring(TREES[path]), "a module says in its docstring which room it is"


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (child for child in node.body if isinstance(child, kinds) and not child.name.startswith("_"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_everything_public_is_documented(path: Path) -> None:
    missing = [node.name for node in public(TREES[path]) if not ast.get_docstring(node)]
    assert missing == []
