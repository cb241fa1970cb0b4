"""Script checks: what passes, with which rights a program runs, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from fusisd.health import script
from fusisd.health.asking import Late
from fusisd.health.probes import probe
from fusisd.health.script import KEPT, NOBODY, OUTPUT_LIMIT, command
from fusisd.model import CheckKind, CheckSpec, CheckTarget
from tests.lab.expect import poll

LIMIT_S = 20.0
SHORT_S = 0.5
ROOT = os.geteuid() == 0


def asked(*argv: str, timeout_s: float = LIMIT_S) -> str:
    """The answer; asked again when this machine was too busy to hear it, as the monitor does."""
    target = CheckTarget("10.0.0.9", 8080, CheckSpec(CheckKind.SCRIPT, argv=argv))
    for _ in range(20):
        with suppress(Late):
            return asyncio.run(probe(target, timeout_s))
    raise AssertionError("too busy twenty times in a row")


def shell(text: str, timeout_s: float = LIMIT_S) -> str:
    return asked("/bin/sh", "-c", text, timeout_s=timeout_s)


def test_exit_status_0_passes_and_else_the_first_line_is_the_reason() -> None:
    assert asked("true") == ""
    assert shell("echo fine; exit 0") == ""
    assert shell("echo; echo 'replica lags'; echo more; exit 1") == "replica lags"
    assert shell("echo 'to stderr' >&2; exit 1") == "to stderr"
    assert shell("exit 3") == "exit status 3"
    assert shell("kill -SEGV $$") == "ended by SIGSEGV"
    assert shell(r"printf '\033[31mred\377\n'; exit 1") == "?[31mred\N{REPLACEMENT CHARACTER}"
    assert len(shell("head -c 100000 /dev/zero | tr '\\0' x; exit 1")) == script.WORDS


def test_no_shell_reads_the_words() -> None:
    assert asked("test", "$FUSIS_PORT;true", "=", "$FUSIS_PORT;true") == ""


def test_the_environment_is_minimal() -> None:
    """What /bin/sh adds by itself (PWD, OLDPWD, SHLVL, _) aside."""
    names = shell("env | cut -d= -f1 | grep -vxE 'PWD|OLDPWD|SHLVL|_' | sort | tr '\\n' ' '; exit 1")
    assert names == "FUSIS_ADDRESS FUSIS_PORT LANG PATH"
    assert shell('echo "$FUSIS_ADDRESS $FUSIS_PORT"; exit 1') == "10.0.0.9 8080"


def said_of_itself(field: str) -> str:
    return shell(f"grep -E '^{field}:' /proc/self/status | cut -f2- | tr '\\t' ' '; exit 1")


@pytest.mark.parametrize("field", ["CapInh", "CapPrm", "CapEff", "CapAmb"] + ["CapBnd"] * ROOT)
def test_it_has_no_capability(field: str) -> None:
    assert int(said_of_itself(field), 16) == 0


def test_it_can_gain_no_right_and_is_nobody_where_we_are_root() -> None:
    assert said_of_itself("NoNewPrivs") == "1"
    uid, groups = said_of_itself("Uid"), said_of_itself("Groups")
    assert (uid == f"{NOBODY} {NOBODY} {NOBODY} {NOBODY}" and not groups.startswith("0")) or not ROOT


def test_its_descriptors_are_three_and_standard_error_can_be_opened() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # as whoever starts us may leave one
    try:
        said = shell("exec >/dev/stderr; for fd in /proc/self/fd/*; do printf '%s ' ${fd##*/}; done; exit 1")
        assert said == "0 1 2 3", "3 is the shell's own, reading the directory"
    finally:
        os.close(reader)
        os.close(writer)


def test_root_gives_up_what_others_do_not_have() -> None:
    assert "--bounding-set=-all" in command(("a",), root=True)
    assert "--bounding-set=-all" not in command(("a",), root=False), "it would need CAP_SETPCAP"
    assert command(("a", "-b"), root=False)[-3:] == ["--", "a", "-b"]


@pytest.mark.parametrize("argv", [("/nonexistent/check",), ("/etc/passwd",), ()])
def test_a_script_that_cannot_be_run_says_nothing_of_the_server(argv: tuple[str, ...]) -> None:
    with pytest.raises(OSError, match="could not be run|no argv"):
        asked(*argv)


def test_without_setpriv_no_script_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SETPRIV", ("/nonexistent/setpriv",))
    with pytest.raises(OSError, match="script checks need setpriv"):
        asked("true")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A file that nobody may write to, below directories that nobody may search."""
    path = tmp_path / "notes"
    path.touch()
    path.chmod(0o666)
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(directory.stat().st_mode | stat.S_IXOTH)
    return path


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_when_its_time_is_over_its_whole_group_is_killed_and_collected(notes: Path) -> None:
    async def run() -> str:
        spec = CheckSpec(CheckKind.SCRIPT, argv=("/bin/sh", "-c", f"sleep 1000 & echo $$ $! >{notes}; wait"))
        said = await probe(CheckTarget("10.0.0.9", 80, spec), SHORT_S)
        pid = int(notes.read_text().split()[0])
        async with asyncio.timeout(LIMIT_S):
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.005)
        return said

    assert asyncio.run(run()) == "no answer within 0.5 s"
    poll(lambda: not any(alive(int(pid)) for pid in notes.read_text().split()))


def test_what_a_script_leaves_behind_is_killed_when_it_ends(notes: Path) -> None:
    assert shell(f"sleep 1000 & echo $! >{notes}") == ""
    poll(lambda: not alive(int(notes.read_text())))


def test_endless_output_is_not_read_for_ever() -> None:
    assert asked("yes", timeout_s=SHORT_S) == "no answer within 0.5 s"
    assert shell(f"head -c {OUTPUT_LIMIT // 2} /dev/zero; exit 1").startswith("?")
    assert KEPT < OUTPUT_LIMIT


def zombies() -> set[str]:
    """Children of ours that ended and were not collected."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.add(path.parent.name)
    return found


def test_scripts_leave_no_descriptor_open_and_no_zombie() -> None:
    async def run() -> None:
        spec = CheckSpec(CheckKind.SCRIPT, argv=("/bin/sh", "-c", "echo no; exit 1"))
        where = CheckTarget("10.0.0.9", 80, spec)
        await probe(where, LIMIT_S)
        before, others = len(os.listdir("/proc/self/fd")), zombies()
        for said in await asyncio.gather(*(probe(where, LIMIT_S) for _ in range(20))):
            assert said == "no"
        assert len(os.listdir("/proc/self/fd")) == before
        assert zombies() <= others

    asyncio.run(run())
