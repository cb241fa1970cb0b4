"""docs/forwarding/tunnel.md: its commands print what it shows, and the packets are those of its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.forwarding import agrees, read


@pytest.mark.guest_only  # modules are loaded, and agents write where they do on a real machine
def test_the_page_s_commands_print_what_it_shows_and_its_packets_pass(tmp_path: Path) -> None:
    agrees(read(tmp_path, "tunnel"), "ipip")
