"""The file fusisd.toml, as words of a command line: so each setting has one name, one check and one default.

A key is an option's name with `_` for `-`; what an option `--no-...` switches off is `... = false`. What the command line
gives counts before what the file says, lists as a whole.
Does not: know what an option means.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fusisd import toml
from fusisd.errors import Invalid, StartupError
from fusisd.fields import Reader, list_of, one_of, read_object, text, truth, whole

ONCE = ("--help", "--config", "--check-config", "--recover-store")
"""What is asked for once, and so stands in no file."""


def keys(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The keys that a file may have, with their options."""
    found = {}
    for action in parser._actions:
        option = action.option_strings[-1] if action.option_strings else "--help"
        if option not in ONCE:
            found[option.removeprefix("--").removeprefix("no-").replace("-", "_")] = action
    return found


def with_file(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """What these words ask for, and the file that they may name. Raises StartupError, which names file and key."""
    options = parser.parse_args(arguments)
    if options.config is None:
        return options
    given = {word.partition("=")[0] for word in arguments}
    return parser.parse_args([*_words(keys(parser), options.config, given), *arguments])


def _words(known: dict[str, argparse.Action], path: Path, given: Collection[str]) -> Iterator[str]:
    readers = {key: _reader(action) for key, action in known.items()}
    for key, value in _read(path, readers).items():
        option = known[key].option_strings[-1]
        if option in given:
            continue
        if known[key].nargs == 0:
            if value is not option.startswith("--no-"):
                yield option
        else:
            yield from (f"{option}={one}" for one in (value if isinstance(value, tuple) else (value,)))


def _read(path: Path, readers: dict[str, Reader[Any]]) -> dict[str, Any]:
    try:
        return read_object(toml.tables(path.read_text("utf-8")), "", readers)
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", 2) from None
    except Invalid as error:
        raise StartupError(f"{path}: {error}", 2) from None


def _reader(action: argparse.Action) -> Reader[Any]:
    """How a value of this option is written in TOML."""
    if action.nargs == 0:
        return truth
    if isinstance(action.default, list):
        return list_of(text)
    if action.choices is not None:
        return one_of({str(choice): choice for choice in action.choices})
    return whole(0, 2**32) if isinstance(action.default, int) else text
