"""The state machine of tests/fusisd/test_machine.py on the real kernel: MACHINES runs of it (12 in `make test`, always the
same ones; 300 in `make soak`, others each time: `SEED=` plays them again), each in a fresh network namespace, and what
was once found. On the fake kernel the same rules run many more times, and find nearly everything sooner.
"""

from __future__ import annotations

import contextlib
import os
import random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from pyipvs import IPVS, TableProbe
from tests.fusisd.test_machine import FOUND, Machine, Step, replayed
from tests.lab.netns import entered
from tests.lab.topology import make_netns

SHORT = 12
MACHINES = int(os.environ.get("MACHINES", SHORT))
SEED = int(os.environ.get("SEED", 1 if MACHINES == SHORT else random.randrange(1 << 30)))
RULES = 12  # in each run


class RealMachine(Machine):
    """On a kernel's table of its own."""

    def opened(self) -> tuple[IPVS, TableProbe | None]:
        self.resources = contextlib.ExitStack()
        name = self.resources.enter_context(make_netns("machine")).name
        with entered(name):
            probe = self.resources.enter_context(TableProbe())
        return self.resources.enter_context(IPVS(netns=name)), probe

    def connections(self, key: str, destination: str, active: int) -> None:
        """None: traffic is other tests' matter (test_fusisd.py, test_campaign.py)."""

    def teardown(self) -> None:
        self.resources.close()


def test_no_sequence_of_events_breaks_an_invariant_on_the_real_kernel() -> None:
    print(f"SEED={SEED} MACHINES={MACHINES}")
    how = settings(
        max_examples=MACHINES,
        stateful_step_count=RULES,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(SEED)(RealMachine), settings=how)


@pytest.mark.parametrize("steps", FOUND.values(), ids=FOUND)
def test_what_was_once_found_stays_repaired(steps: list[Step]) -> None:
    replayed(RealMachine(), steps)
