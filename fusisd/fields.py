"""JSON from outside, read strictly: every value has the type and range that is said, and no key is left unread.

A reader is asked with a value and the place where it stands (`services.web.destinations.d1.port`), and gives what the
value means or raises Invalid with the place in its sentence; its schema says the same to others (JSON Schema 2020-12), so
that what validates and what is documented are one table. Unknown keys are refused, since what an older fusisd does not
know it must not drop in silence (the robustness principle turned round: RFC 9413, section 4).
Does not: know what a service is.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, NoReturn, TypeVar

from fusisd.errors import Invalid

T = TypeVar("T")

Read = Callable[[object, str], T]
"""(value, place) -> what it means; raises Invalid."""

Schema = Mapping[str, Any]
"""A JSON Schema as plain data; never changed."""


@dataclass(frozen=True, slots=True)
class Reader(Generic[T]):
    """What reads a value, and the schema of the values that it takes."""

    read: Read[T]
    schema: Schema

    def __call__(self, value: object, place: str) -> T:
        """What the value means. Raises Invalid."""
        return self.read(value, place)


def refuse(value: object, place: str, rule: str) -> NoReturn:
    """Raise Invalid: `place value rule`, the value shortened."""
    raise Invalid(f"{place} {reprlib.repr(value)} {rule}".lstrip(), place)


@contextmanager
def refused_at(place: str) -> Iterator[None]:
    """What pyipvs refuses inside (ValueError) becomes Invalid with the place."""
    try:
        yield
    except ValueError as error:
        raise Invalid(f"{place}: {error}" if place else str(error), place or None) from None


@contextmanager
def within(place: str) -> Iterator[None]:
    """What is refused inside stands at this place of something larger."""
    try:
        yield
    except Invalid as error:
        dot = "." if error.field is not None and str(error).startswith(error.field) else ": "
        raise Invalid(f"{place}{dot}{error}", f"{place}.{error.field}" if error.field else place) from None


def parsed(text: str) -> Any:
    """The value of a JSON text (RFC 8259). Raises Invalid, also for NaN, a key that stands twice, and bottomless nesting."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except ValueError as error:  # json.JSONDecodeError names line and column
        raise Invalid(f"no valid JSON: {error}") from None
    except RecursionError:
        raise Invalid("no valid JSON: nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twin = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twin!r} stands twice in one object")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def read_object(
    value: object, place: str, readers: Mapping[str, Read[Any]], needed: Iterable[str] = (), hint: str = ""
) -> dict[str, Any]:
    """What the keys of a JSON object mean, of those that are there; `hint` tells more where a key is not known.

    `place` is where the object stands, "" for a request's or a row's own. Raises Invalid: no object, a key without a
    reader, one of `needed` missing.
    """
    if not isinstance(value, dict):
        refuse(value, place, "must be an object")
    prefix = f"{place}." if place else ""
    found = {}
    for key, item in value.items():
        reader = readers.get(key)
        if reader is None:
            raise Invalid(f"{prefix}{key} is not known{hint}: misspelt, or of a newer fusisd", f"{prefix}{key}")
        found[key] = reader(item, f"{prefix}{key}")
    for key in needed:
        if key not in found:
            raise Invalid(f"{prefix}{key} is missing{hint}", f"{prefix}{key}")
    return found


def object_schema(fields: Mapping[str, Reader[Any]], needed: Iterable[str] = ()) -> Schema:
    """The schema of what `read_object` takes."""
    shown = {name: reader.schema for name, reader in fields.items()}
    return {"type": "object", "properties": shown, "required": list(needed), "additionalProperties": False}


def object_of(fields: Mapping[str, Reader[Any]], needed: Iterable[str] = ()) -> Reader[dict[str, Any]]:
    """What the fields of an object mean, of those that are there."""
    needed = tuple(needed)
    return Reader(lambda value, place: read_object(value, place, fields, needed), object_schema(fields, needed))


def _text(value: object, place: str) -> str:
    return value if isinstance(value, str) else refuse(value, place, "must be text")


text = Reader(_text, {"type": "string"})
"""Any text."""


def text_as(read: Callable[[str, str], T], **schema: Any) -> Reader[T]:
    """What a text means to `read`, which is given it and the place; `schema` says more of such a text."""
    return Reader(lambda value, place: read(text(value, place), place), {"type": "string", **schema})


def matching(pattern: str, rule: str) -> Reader[str]:
    """Text that the pattern matches whole; `rule` says what that is (`must be ...`)."""
    compiled = re.compile(pattern)

    def read(said: str, place: str) -> str:
        return said if compiled.fullmatch(said) else refuse(said, place, rule)

    return text_as(read, pattern=f"^({pattern})$")


def short_text(longest: int) -> Reader[str]:
    """Text of at most so many characters that UTF-8 can carry, without NUL."""

    def read(said: str, place: str) -> str:
        if len(said) > longest or "\0" in said or any("\ud800" <= letter <= "\udfff" for letter in said):
            refuse(said, place, f"must be at most {longest} characters of UTF-8 without NUL")
        return said

    return text_as(read, maxLength=longest, pattern="^[^\\u0000]*$")


def whole(low: int, high: int) -> Reader[int]:
    """A whole number within these bounds; true and false are none."""

    def read(value: object, place: str) -> int:
        if type(value) is not int or not low <= value <= high:
            refuse(value, place, f"must be a whole number from {low} to {high}")
        return value

    return Reader(read, {"type": "integer", "minimum": low, "maximum": high})


def seconds(low: float, high: float) -> Reader[float]:
    """A number of seconds within these bounds."""

    def read(value: object, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is not within
            refuse(value, place, f"must be seconds from {low:g} to {high:g}")
        return value

    return Reader(read, {"type": "number", "minimum": low, "maximum": high})


def _truth(value: object, place: str) -> bool:
    return value if isinstance(value, bool) else refuse(value, place, "must be true or false")


truth = Reader(_truth, {"type": "boolean"})
"""true or false."""


def one_of(words: Mapping[str, T]) -> Reader[T]:
    """What one of these words means."""

    def read(value: object, place: str) -> T:
        if not isinstance(value, str) or value not in words:
            refuse(value, place, f"must be one of {', '.join(words)}")
        return words[value]

    return Reader(read, {"enum": list(words)})


def words_of(kind: type[Enum]) -> dict[str, Any]:
    """The words of an enumeration whose values are words."""
    return {str(member.value): member for member in kind}


def list_of(reader: Reader[T], least: int = 0, most: int = 1_000_000) -> Reader[tuple[T, ...]]:
    """A list of what `reader` reads."""
    schema = {"type": "array", "items": reader.schema, "minItems": least, "maxItems": most}

    def read(value: object, place: str) -> tuple[T, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            refuse(value, place, "must be a list" + (f" of {least} to {most}" if least else ""))
        return tuple(reader(item, f"{place}[{index}]") for index, item in enumerate(value))

    return Reader(read, schema)


def by_name(decode: Callable[[str, object, str], T], names: Schema, schema: Schema) -> Reader[dict[str, T]]:
    """An object whose keys are names; `decode` is given name, value and place. The schemas are of a name, and of a value."""

    def read(value: object, place: str) -> dict[str, T]:
        if not isinstance(value, dict):
            refuse(value, place, "must be an object")
        return {name: decode(name, row, f"{place}.{name}") for name, row in value.items()}

    return Reader(read, {"type": "object", "propertyNames": names, "additionalProperties": schema})


def only_once(identities: Iterable[tuple[str, object]], place: str) -> None:
    """Raises Invalid when two of these (name, identity) have the same identity."""
    seen: dict[object, str] = {}
    for name, identity in identities:
        if identity in seen:
            raise Invalid(f"{place}.{name} is {identity}, which {seen[identity]} is already", place)
        seen[identity] = name
