"""The recorded member lists are still what a real agent shows."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.serf.agents import Agents
from tests.serf.record_lists import RECORDS, recorded, statuses


@pytest.mark.parametrize("case", ["leaves_and_returns", "balancer_s_agent_restarts"])
def test_a_real_agent_shows_what_was_recorded(case: str, agents: Agents) -> None:
    before = json.loads((RECORDS / f"{case}.json").read_text())
    now = asyncio.run(recorded(case, agents))
    assert statuses(now, "n2") == statuses(before, "n2")
