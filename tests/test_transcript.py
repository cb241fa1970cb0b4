"""Somebody who types what a page says (tests/lab/transcript.py) notices when something else is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.transcript import Reader, Step, steps

PAGE = """
Some words, and a block that is no transcript:
```
# rm -r nothing
```
```console
# echo one; echo two
one
two
rs1# true
```
"""



def read(home: Path, *typed: Step, limit_s: float = 20.0) -> None:
    with Reader(home, {"": lambda command: ["bash", "-c", command]}) as reader:
        for step in typed:
            reader.type(step)
        reader.finish(limit_s)


def test_the_commands_of_a_page_with_where_they_are_typed_and_what_is_shown() -> None:
    assert steps(PAGE) == [Step("", "echo one; echo two", ("one", "two")), Step("rs1", "true")]


def test_what_is_shown_is_printed_and_what_differs_each_time_may(tmp_path: Path) -> None:
    read(tmp_path, Step("", "echo one; echo pid $$ runs", ("one", "pid … runs")))


@pytest.mark.parametrize("shown", [(), ("one",), ("one", "three"), ("one", "two", "three"), ("two", "one")])
def test_anything_else_is_noticed(tmp_path: Path, shown: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="printed:\none\ntwo"):
        read(tmp_path, Step("", "echo one; echo two", shown))


def test_a_line_that_was_printed_is_typed_with_all_that_the_page_leaves_out(tmp_path: Path) -> None:
    read(tmp_path, Step("", "echo echo key $$", ("echo key …",)), Step("", "echo key …", ("key …",)))


def test_a_question_is_asked_until_the_answer_is_the_one_shown(tmp_path: Path) -> None:
    counter = tmp_path / "asked"
    ask = f"curl --version >/dev/null; echo x >>{counter}; wc -l <{counter}"
    read(tmp_path, Step("", ask, ("3",)))


def test_of_what_runs_on_all_shown_lines_must_come_in_their_order(tmp_path: Path) -> None:
    read(tmp_path, Step("", "(echo one; echo two; echo three) &", ("one", "three")))
    with pytest.raises(AssertionError, match="printed: one\ntwo"):
        read(tmp_path, Step("", "(echo one; echo two) &", ("two", "one")), limit_s=0)
