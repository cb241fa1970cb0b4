"""How an answer's body may be packed for who asks (RFC 9110, 12.5.3).

Does not: pack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NO = re.compile(r"q=0(\.0{0,3})?\Z")


def takes_gzip(environ: Mapping[str, Any]) -> bool:
    """Whether the client says that it takes gzip; by name, for who sends `*` alone may be anybody."""
    for one in str(environ.get("HTTP_ACCEPT_ENCODING", "")).lower().split(","):
        coding, _, weight = (part.strip() for part in one.partition(";"))
        if coding in ("gzip", "x-gzip"):
            return _NO.match(weight.replace(" ", "")) is None
    return False
