"""Records what a real agent sends, for tests/fusisd/test_serf_protocol.py: `python -m tests.serf.record`.

A transcript is JSON: the requests in order, and the bytes of the answers in hex. Needs the Debian package serf.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from fusisd.serf.protocol import Connection
from tests.serf.agents import Agents, address

TRANSCRIPTS = Path(__file__).parent / "transcripts"
CONVERSATION = [
    ("handshake", {"Version": 1}),
    ("stream", {"Type": "*"}),
    ("members", None),
    ("tags", {"Tags": {"role": "agent", "s:web": "80/nat/1"}, "DeleteTags": ["gone"]}),
    ("event", {"Name": "fusis", "Payload": b"", "Coalesce": False}),
    ("members-filtered", {"Tags": {"role": "agent"}, "Status": "alive", "Name": ""}),
    ("join", {"Existing": ["127.0.0.1:1"], "Replay": False}),
    ("force-leave", {"Node": "nobody", "Prune": False}),
    ("stats", None),
    ("get-coordinate", {"Node": "n1"}),
    ("list-keys", None),
    ("members", None),
]


async def conversation(where: tuple[str, int]) -> tuple[list[list[object]], bytes]:
    reader, writer = await asyncio.open_connection(*where)
    protocol, received = Connection(), b""
    for command, body in CONVERSATION:
        seq, data = protocol.request(command, body)
        writer.write(data)
        answered = False
        while not answered:
            piece = await asyncio.wait_for(reader.read(65536), 20)
            received += piece
            answered = any(item.seq == seq for item in protocol.receive(piece))
    try:
        while True:  # member-update and user events of the stream trickle in
            received += await asyncio.wait_for(reader.read(65536), 4)
    except TimeoutError:
        writer.close()
    printable = [[command, {k: v.decode() if isinstance(v, bytes) else v for k, v in (body or {}).items()} if body else None]
                 for command, body in CONVERSATION]  # fmt: skip
    return printable, received


async def main() -> None:
    with tempfile.TemporaryDirectory() as home, Agents(Path(home)) as agents:
        agents.start(1, "role=balancer", "gone=soon", "odd=\udcff\udcfe")
        agents.start(2, "role=agent", "s:web=80", join=1)
        client = await agents.client(1)
        while len(await client.members()) < 2:
            await asyncio.sleep(0.1)
        await client.close()
        requests, received = await conversation((address(1), 7373))
    TRANSCRIPTS.mkdir(exist_ok=True)
    text = json.dumps({"requests": requests, "received": received.hex()}, indent=1)
    (TRANSCRIPTS / "conversation.json").write_text(text + "\n")
    print(f"{len(received)} bytes for {len(requests)} requests")


if __name__ == "__main__":
    asyncio.run(main())
