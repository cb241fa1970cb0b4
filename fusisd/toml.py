"""Our configuration files and tables of services: TOML that holds what JSON holds.

Does not: know what a file's keys mean.
"""

from __future__ import annotations

import math
import tomllib
from typing import Any

from fusisd.errors import Invalid


def tables(text: str) -> dict[str, Any]:
    """The document. Raises Invalid: no TOML, nested too deeply, or what JSON has not: dates, infinity, NaN."""
    try:
        document = tomllib.loads(text)
        _no_other(document, "")
    except RecursionError:
        raise Invalid("nested too deeply") from None
    except ValueError as error:  # tomllib's, and Python's own of a number of 5000 digits
        raise Invalid(str(error)) from None
    return document


def _no_other(value: object, place: str) -> None:
    """Raises Invalid."""
    if isinstance(value, dict):
        for key, item in value.items():
            _no_other(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _no_other(item, f"{place}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Invalid(f"{place} {value} is not finite", place)
    elif not isinstance(value, str | int | float):
        raise Invalid(f"{place} is a {type(value).__name__}: text in quotes is meant", place)
