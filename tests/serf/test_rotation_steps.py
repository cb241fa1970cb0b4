"""The order of a rotation, on a cluster of values: what each node reads and writes with after every step, and refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fusisd.serf import rotation
from fusisd.serf.errors import SerfRefused
from fusisd.serf.keys import load_or_make_key
from fusisd.serf.values import KeyReport, Member

STEPS = ("install", "use", "list", "remove")


class Cluster:
    """Nodes with their rings; a command reaches them one after another, and after each they must understand each other."""

    def __init__(self, key: str, refuses: str = "", times: int = 0) -> None:
        self.rings = {name: [key] for name in ("n1", "n2", "n3")}
        self._refuses, self._times = refuses, times

    async def members(self) -> list[Member]:
        return [Member(name, "10.0.0.1", 7946, "alive", {}) for name in self.rings]

    async def list_keys(self) -> KeyReport:
        keys = [key for ring in self.rings.values() for key in ring]
        return self._answer("list", {key: keys.count(key) for key in keys})

    async def install_key(self, key: str) -> KeyReport:
        return self._each("install", lambda ring: [*ring, *([] if key in ring else [key])])

    async def use_key(self, key: str) -> KeyReport:
        return self._each("use", lambda ring: [key, *(one for one in ring if one != key)])

    async def remove_key(self, key: str) -> KeyReport:
        return self._each("remove", lambda ring: [one for one in ring if one != key])

    def _each(self, step, change):  # type: ignore[no-untyped-def]
        for name in self.rings:
            if name == "n3" and self._refuses == step and self._times > 0:
                break
            self.rings[name] = change(self.rings[name])
            assert all(ring[0] in other for ring in self.rings.values() for other in self.rings.values()), step
        return self._answer(step, {})

    def _answer(self, step: str, keys: dict[str, int]) -> KeyReport:
        if step == self._refuses and self._times > 0:
            self._times -= 1
            body = {"Keys": {}, "Messages": {"n3": "disk full"}, "NumNodes": 3, "NumResp": 3, "NumErr": 1}
            raise SerfRefused(f"{step}-key", "1/3 nodes reported failure", body)
        return KeyReport(keys, {}, 3, 3, 0)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "PAUSE_S", 0.0)


@pytest.mark.parametrize("step", STEPS)
def test_all_understand_each_other_at_every_moment_though_a_step_is_refused_for_a_while(tmp_path: Path, step: str) -> None:
    file = tmp_path / "key"
    cluster = Cluster(load_or_make_key(file), step, rotation.TRIES - 1)
    asyncio.run(rotation.rotate(cluster, file))
    assert set(map(tuple, cluster.rings.values())) == {(file.read_text().strip(),)}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_refused_for_good_ends_it_with_who_and_why_and_can_be_run_again(tmp_path: Path, step: str) -> None:
    file = tmp_path / "key"
    old = load_or_make_key(file)
    cluster = Cluster(old, step, rotation.TRIES)
    with pytest.raises(rotation.RotationError, match="n3: disk full.*run it again") as raised:
        asyncio.run(rotation.rotate(cluster, file))
    assert (file.read_text().strip() == old) == (step in ("install", "use")), "replaced when all write with it, not before"
    secrets = {key for ring in cluster.rings.values() for key in ring}
    assert not any(key in str(raised.value) for key in secrets)
    asyncio.run(rotation.rotate(cluster, file))
    assert set(map(tuple, cluster.rings.values())) == {(file.read_text().strip(),)}
