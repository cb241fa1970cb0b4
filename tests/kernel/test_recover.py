"""A lost store and a backup, as docs/operations.md says: the services come back as ours, and no packet notices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusisd.ctl.__main__ import main as fusisctl
from tests.lab.backends import backends
from tests.lab.expect import poll
from tests.lab.fusis import Balancer
from tests.lab.topology import VIP, Lab
from tests.lab.traffic import Traffic


def test_a_backup_takes_its_services_over_from_the_kernel(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {one.name: {"address": one.address, "port": 80, "method": "nat", "weight": 2} for one in lab.servers[:2]}
    body = {"key": f"tcp/{VIP}:80", "scheduler": "wrr", "check": {"kind": "tcp"}, "destinations": rows}
    saved = tmp_path / "backup.json"
    with Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off") as balancer, backends(lab.servers) as running:
        words = ["--socket", str(balancer.socket)]

        def ctl(*more: str) -> str:
            capsys.readouterr()
            assert fusisctl([*words, *more]) == 0, capsys.readouterr()
            return capsys.readouterr().out

        balancer.client().send("PUT", "/v1/services/web", body)
        poll(lambda: balancer.weights("web") == {"rs1": 2, "rs2": 2}, 60, "both to serve")
        ctl("export", str(saved))
        later = lab.servers[2]
        path = "/v1/services/web/destinations/rs3"  # made after the backup
        balancer.client().send("PUT", path, {"address": later.address, "port": 80, "method": "nat"})
        poll(lambda: balancer.weights("web")["rs3"] == 1, 60, "the third")
        made = lab.lb1.run("ipvsadm", "-Sn")
        with Traffic() as traffic:
            balancer.stop()
            (balancer.state_dir / "fusisd.db").write_bytes(b"no database, and long enough to be taken for one" * 99)
            balancer.start("--recover-store")
            told = ctl("import", "--adopt", str(saved))
            assert "created" in told
            poll(lambda: traffic.total > 20, what="traffic")
            found = balancer.client().get("/v1/services/web")
            assert found["destinations"].keys() == {"rs1", "rs2", f"{later.address}:80"}
            assert (found["scheduler"], found["check"]["kind"]) == ("wrr", "tcp")
            poll(lambda: balancer.status()["ok"], 60, "all to be well")
            assert sorted(lab.lb1.run("ipvsadm", "-Sn").splitlines()) == sorted(made.splitlines())
        assert traffic.lost == []
        again = json.loads(ctl("import", "--adopt", str(saved), "--json"))["objects"]
        assert {row["outcome"] for row in again} == {"unchanged"}
        running["rs1"].kill()
        poll(lambda: not balancer.weights("web").get("rs1"), 60, "its check to take it out")
        ctl("service", "delete", "web", "--now")
        poll(lambda: lab.lb1.run("ipvsadm", "-Sn") == "", 60, "it to be gone")
    lab.lb1.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")  # another's since the store was lost
