"""What real agents sent, as record.py wrote it down: the requests, and every byte that came back.

The bytes are the fuzzer's corpus too, and stand there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusisd.serf.protocol import Connection, Record, Reply

REQUESTS = Path(__file__).parent / "transcripts"
RECEIVED = Path(__file__).parents[1] / "fuzz" / "corpus" / "serf_rpc"


@dataclass(frozen=True, slots=True)
class Transcript:
    """One connection's life."""

    requests: list[tuple[str, dict[str, Any] | None]]
    received: bytes

    def asked(self) -> Connection:
        """A connection on which its requests were made, and that heard nothing yet."""
        connection = Connection()
        for command, body in self.requests:
            connection.request(command, body)
        return connection

    def items(self) -> list[Reply | Record]:
        """What its bytes say."""
        return self.asked().receive(self.received)

    def replies(self, command: str) -> list[Reply]:
        """The answers to this command, in order."""
        return [item for item in self.items() if isinstance(item, Reply) and item.command == command]

    def records(self, command: str) -> list[Record]:
        """What this command's stream brought."""
        return [item for item in self.items() if isinstance(item, Record) and item.command == command]


def load() -> dict[str, Transcript]:
    """All of them by name."""
    return {
        path.stem: Transcript([(command, body) for command, body in json.loads(path.read_text())],
                              (RECEIVED / path.stem).read_bytes())
        for path in sorted(REQUESTS.glob("*.json"))
    }  # fmt: skip


TRANSCRIPTS = load()
