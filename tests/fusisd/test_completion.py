"""Completion in a real bash: what it offers after these words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fusisd.ctl.__main__ import _parser, main
from fusisd.ctl.completion import script


def offered(line: str, directory: Path) -> set[str]:
    """What bash would offer for the last word of `line`."""
    words = line.split(" ")
    program = 'source /dev/stdin; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fusisctl; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-eu", "-c", program, "-", *words], input=script(_parser()), cwd=directory,
                          capture_output=True, text=True, timeout=30)  # fmt: skip
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "there", "absent"),
    [
        ("fusisctl ", {"status", "service", "doctor", "completion", "--url"}, {"add", "--drain"}),
        ("fusisctl ser", {"service", "services", "serf"}, {"status"}),
        ("fusisctl service ", {"add", "edit", "delete", "list", "show"}, {"status"}),
        ("fusisctl --url http://lb:8000 service delete web --", {"--drain", "--now", "--json"}, {"--port", "add"}),
        ("fusisctl join-command --mode ", {"nat", "route", "tunnel"}, {"--port"}),
        ("fusisctl completion ", {"bash"}, {"status"}),
        ("fusisctl status status ", {"--json"}, {"service"}),
    ],
)
def test_the_next_word(line: str, there: set[str], absent: set[str], tmp_path: Path) -> None:
    found = offered(line, tmp_path)
    assert there <= found
    assert not absent & found


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == script(_parser())
