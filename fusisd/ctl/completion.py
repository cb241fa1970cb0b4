"""fusisctl's command `completion`: a script for bash that knows every command, option and choice, made from the parser.

Does not: know any of them, or ask fusisd (names of services are not completed).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

from fusisd.ctl import render, words
from fusisd.ctl.client import Client

_SCRIPT = """\
# bash completion for fusisctl: source <(fusisctl completion bash)
_fusisctl() {{
    local path= word last=${{COMP_WORDS[COMP_CWORD-1]}} words=
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$path $word" in
            {paths}) path="$path $word" ;;
        esac
    done
    case "$path|$last" in
{choices}
        *) case "$path" in
{words}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _fusisctl fusisctl
"""


def declare(commands: words.Commands, parser: argparse.ArgumentParser) -> None:
    """Add the command of this module, for this parser."""
    text = "print a script that completes commands and options"
    example = "fusisctl completion bash >/etc/bash_completion.d/fusisctl"
    command = words.command(commands, "completion", partial(show, parser), text, example)
    command.add_argument("shell", choices=("bash",), help="the shell that reads it")


def show(parser: argparse.ArgumentParser, client: Client, options: argparse.Namespace) -> int:
    """Print it."""
    del client
    text = script(parser)
    if options.json:
        render.say_json({"shell": options.shell, "script": text})
    else:
        render.say_raw(text.rstrip())
    return 0


def script(parser: argparse.ArgumentParser) -> str:
    """The script for bash. In it a path is the words of a command, each with a blank before it."""
    tree = dict(_tree(parser, ""))
    paths = "|".join(f'"{path}"' for path in tree if path)
    choices = [
        f'        "{path}|{option}") words="{" ".join(map(str, action.choices))}" ;;'
        for path, below in tree.items()
        for action in below._actions
        if action.choices is not None
        for option in action.option_strings
    ]
    lines = [f'            "{path}") words="{" ".join(_words(below))}" ;;' for path, below in tree.items()]
    return _SCRIPT.format(paths=paths, choices="\n".join(choices), words="\n".join(lines))


def _tree(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from _tree(below, f"{path} {name}")


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What may come next: options, and the commands or choices that are no option's."""
    for action in parser._actions:
        yield from action.option_strings or (map(str, action.choices) if action.choices is not None else ())
