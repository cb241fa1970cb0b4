"""What the agent changed on this server, on disk before it is changed, so that undoing is exact after `kill -9`, too.

The file also keeps what else must outlive us: the VIPs that the balancer named, and what an operator ordered. What was
made is tied to this boot and network namespace: rows of another are void, for a reboot undoes all of it.
Does not: change anything itself (host.py does).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusisd.errors import Invalid, StartupError
from fusisd.fields import list_of, parsed, read_object, text, whole
from fusisd.files import write_private


@dataclass(frozen=True, slots=True)
class Undo:
    """How a thing that was made goes again: a line of `ip`."""

    family: int
    delete: str


@dataclass(slots=True)
class Record:
    """`made` in the order in which it was made; `switches` name -> (value before, value that we set)."""

    made: dict[str, Undo] = field(default_factory=dict)
    switches: dict[str, tuple[str, str]] = field(default_factory=dict)
    vips: dict[str, str] = field(default_factory=dict)
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)


class RecordFile:
    """The record's file."""

    def __init__(self, path: Path, machine: str) -> None:
        """`machine`: boot and network namespace. Reads the file. Raises StartupError: damaged, or not to be read."""
        self._path, self._machine = path, machine
        self.record = Record()
        try:
            document = read_object(parsed(path.read_text("utf-8")), "", _FILE)
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError, Invalid) as error:
            raise StartupError(f"{path}: {error}; it says what was changed here: mend it, or undo that by hand") from None
        self.record.vips, self.record.orders = document.get("vips", {}), document.get("orders", {})
        if document.get("machine") == machine:
            self.record.made, self.record.switches = document.get("made", {}), document.get("switches", {})

    def write(self) -> None:
        """Replace the file in one step, on disk when this returns. Raises OSError."""
        document = {"machine": self._machine, **asdict(self.record)}
        write_private(self._path, json.dumps(document, indent=1))


def _undo(value: object, place: str) -> Undo:
    found = read_object(value, place, {"family": whole(4, 6), "delete": text}, ("family", "delete"))
    return Undo(found["family"], found["delete"])


def _pair(value: object, place: str) -> tuple[str, str]:
    before, ours = list_of(text, 2, 2)(value, place)
    return before, ours


def _object(reader: Any) -> Any:
    """A reader of an object whose values `reader` reads."""

    def read(value: object, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Invalid(f"{place} must be an object", place)
        return {key: reader(item, f"{place}.{key}") for key, item in value.items()}

    return read


def _order(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Invalid(f"{place} must be an object", place)
    return value


_FILE = {
    "machine": text,
    "made": _object(_undo),
    "switches": _object(_pair),
    "vips": _object(text),
    "orders": _object(_order),
}
