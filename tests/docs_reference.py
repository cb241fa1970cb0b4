"""Writes docs/pyipvs/reference.md from the docstrings: `python -m tests.docs_reference`.

What it says is what the code says: signatures as they are written, fields with their defaults, docstrings word for word.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import pyipvs
from pyipvs.client import Batch
from pyipvs.listing import DestinationList, ServiceList
from pyipvs.model import Info
from pyipvs.ruleset import Entry
from pyipvs.testing import FakeKernel

PAGE = Path(__file__).parents[1] / "docs" / "pyipvs" / "reference.md"
_WIDTH = 100
_FOR_US = "See pyipvs.netlink"
_HEAD = """\
# Reference

Made from the docstrings by `python -m tests.docs_reference`; edit those, not this page. What it all means stands in the
other pages: [README.md](README.md).

In signatures `KeyLike` is a `ServiceKey` or its text, `DestinationLike` a `Destination` or the text `address:port`,
`Progress` a function of how many changes are done and how many there are, `Transport` what FakeKernel is one of, and `Where`
a service's key, or that and the address and port of a destination.
"""
_NOT_MADE = "## What verbs return\n\nYou are given these; you do not make them or import them by name.\n"
_TESTING = "## pyipvs.testing\n"


def page() -> str:
    """The whole page."""
    public = {name: getattr(pyipvs, name) for name in pyipvs.__all__}
    groups: dict[str, list[str]] = {"Verbs": ["IPVS"], "Values": [], "Functions": [], "Errors": []}
    for name, thing in public.items():
        if name != "IPVS":
            groups[_group(thing)].append(name)
    parts = [_HEAD]
    for title, names in groups.items():
        parts += [f"## {title}\n", *(_entry(name, public[name]) for name in names)]
    parts.append(_NOT_MADE)
    parts += [_entry(thing.__name__, thing) for thing in (ServiceList, DestinationList, Entry, Info, Batch)]
    parts += [_TESTING, _entry("FakeKernel", FakeKernel)]
    return "\n".join(parts)


def _group(thing: Any) -> str:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return "Errors"
    return "Functions" if inspect.isfunction(thing) else "Values"


def _entry(name: str, thing: Any) -> str:
    if isinstance(thing, types.UnionType):
        return f"### {name}\n\nAny of {', '.join(f'`{kind.__name__}`' for kind in thing.__args__)}.\n"
    if not inspect.isclass(thing):
        return f"### {name}\n\n{_signature(name, thing)}\n{_text(thing)}"
    return "\n".join([f"### {name}\n", *_class(name, thing)])


def _class(name: str, thing: type) -> Iterator[str]:
    own = [base for base in thing.__bases__ if base.__module__.startswith("pyipvs") and not base.__name__.startswith("_")]
    if own or issubclass(thing, (OSError, ValueError)):
        yield f"A kind of {', '.join(f'`{base.__name__}`' for base in own or thing.__bases__)}.\n"
    yield _text(thing)
    if issubclass(thing, Enum):
        yield _table(("name", "value"), [(f"`{key}`", f"{member.value}") for key, member in thing.__members__.items()])
    elif dataclasses.is_dataclass(thing):
        yield _table(("field", "type", "default"), [_field(field) for field in dataclasses.fields(thing)])
    elif hasattr(thing, "_fields"):
        yield _table(("field", "type", "default"), list(_named(thing)))
    elif "__init__" in vars(thing):
        yield _signature(name, thing.__init__) + "\n" + _text(thing.__init__)
    for member, found in _members(thing):
        if member == "__post_init__":
            yield f"Making one: {_text(found)}"
            continue
        yield f"#### {name}.{member}\n"
        yield _member(member, found)


def _field(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    default = "" if field.default is dataclasses.MISSING else f"`{_default(field.default)}`"
    return f"`{field.name}`", f"`{field.type}`".replace("|", "\\|"), default if field.init else "follows from the others"


def _named(thing: Any) -> Iterator[tuple[str, ...]]:
    kinds = inspect.get_annotations(thing)
    for name in thing._fields:
        default = f"`{_default(thing._field_defaults[name])}`" if name in thing._field_defaults else ""
        yield f"`{name}`", f"`{_kind(kinds[name])}`".replace("|", "\\|"), default


def _kind(annotation: Any) -> str:
    """typing.NamedTuple makes a ForwardRef of a text."""
    return str(getattr(annotation, "__forward_arg__", annotation))


def _members(thing: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties, and special methods that say something, of classes of ours."""
    found: dict[str, Any] = {}
    for base in reversed([base for base in thing.__mro__ if base.__module__.startswith("pyipvs")]):
        for name, value in vars(base).items():
            special = name.startswith("__") and name not in ("__init__", "__reduce__") and name.endswith("__")
            if isinstance(value, (types.FunctionType, classmethod, property)) and (special or not name.startswith("_")):
                function = _function(value)
                ours = function.__module__.startswith("pyipvs")
                if ours and function.__doc__ and not function.__doc__.startswith(_FOR_US):
                    found[name] = value
    yield from found.items()


def _function(member: Any) -> Callable[..., Any]:
    if isinstance(member, property):
        return member.fget  # type: ignore[return-value]
    return member.__func__ if isinstance(member, classmethod) else member


def _member(name: str, member: Any) -> str:
    function = _function(member)
    if isinstance(member, property):
        return f"Property, `{inspect.signature(function).return_annotation}`.\n\n{_text(function)}"
    return f"{_signature(name, function)}\n{_text(function)}"


def _signature(name: str, function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    parts = [_parameter(one) for one in signature.parameters.values() if one.name not in ("self", "cls")]
    returned = signature.return_annotation
    tail = "" if function.__name__ == "__init__" or returned in ("None", signature.empty) else f" -> {returned}"
    line = f"{name}({', '.join(parts)}){tail}"
    if len(line) > _WIDTH:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){tail}"
    return f"```text\n{line}\n```\n"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}: {parameter.annotation}"
    return text if parameter.default is parameter.empty else f"{text} = {_default(parameter.default)}"


def _default(value: Any) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    return repr(str(value)) if isinstance(value, PurePath) else repr(value)


def _text(thing: Any) -> str:
    """The docstring; a paragraph with indented lines is an example."""
    paragraphs = inspect.cleandoc(thing.__doc__ or "").split("\n\n")
    return "\n".join(f"```text\n{one}\n```\n" if "\n    " in one else f"{one}\n" for one in paragraphs if one)


def _table(heading: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [heading, ("---",) * len(heading), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
