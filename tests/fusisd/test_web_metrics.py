"""`/metrics`, the statistics of the native API, and the documents that name metrics."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fusisd.commands import Command
from fusisd.counts import Counts
from fusisd.inbox import Beginning, Committed, MembersSeen, ProbeChanged
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.model import CheckKind, CheckSpec, Intent
from fusisd.ports import Reading, Snapshot
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from tests.fusisd.web_helpers import TOKEN, Answer, call
from tests.fusisd.world import UP, WEB_KEY, Daemon, at, check, down, member, web

ROOT = Path(__file__).parents[2]
OURS = frozenset({WEB_KEY})


class LiveCore:
    """ports.Core over a Daemon on a fake kernel; nothing is refreshed."""

    def __init__(self) -> None:
        self.counted = Counts()
        self.daemon = Daemon(Beginning(serf_expected=False, facts={"version": "1.2.3"}), counts=self.counted)
        self.reading = Reading(float("-inf"))

    def read(self) -> None:
        entries = {entry.service.key: entry for entry in IpvsKernel(self.daemon.ipvs, None).scan()}
        self.reading = Reading(self.daemon.clock.now_s, 0.001, entries)

    def snapshot(self) -> Snapshot:
        return self.daemon.control.snapshot

    def statistics(self) -> Reading:
        return self.reading

    def counts(self) -> Counts:
        return self.counted

    def submit(self, command: Command, who: str) -> Snapshot:
        raise NotImplementedError


@pytest.fixture
def core() -> LiveCore:
    """Two operators' servers, one of them down, one of Serf's, and somebody else's service."""
    core = LiveCore()
    daemon = core.daemon
    service = web(destinations={"d1": at(1, weight=3), "d2": at(2)}, check=CheckSpec(CheckKind.TCP))
    daemon.turn(Committed(Intent({"web": service}, 1), OURS), MembersSeen((member(3),)))
    daemon.turn(ProbeChanged(check(1), UP), ProbeChanged(check(3), UP))
    daemon.turn(ProbeChanged(check(2), down(daemon.clock.now_s)))
    daemon.ipvs.add_service("tcp/10.9.9.9:443", scheduler="rr")
    daemon.ipvs.add_destination("tcp/10.9.9.9:443", "10.9.9.10:443", method="route")
    daemon.clock.now_s += 2
    daemon.turn()
    daemon.fake.traffic(str(WEB_KEY), "10.0.0.11:80", active=4, inactive=2, connections=9, bytes_in=1000, packets_out=5)
    core.read()
    return core


def app_of(core: LiveCore) -> Any:
    return make_app(core, WritePolicy.for_token(TOKEN), clock=core.daemon.clock)


def scrape(app: Any, **environ: Any) -> Answer:
    answer = call(app, "GET", "/metrics", **environ)
    assert answer.status == 200
    return answer


def samples(text: str) -> dict[str, float]:
    """Each sample by its name and labels, in the order of the alphabet."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_a_node_s_name_is_a_label_s_value_and_nothing_else() -> None:
    core = LiveCore()
    odd = ['x"} 1\nfusis_up{forged="yes', "back\\slash", "no\udcffutf8"]
    members = tuple(replace(member(number), name=name) for number, name in enumerate(odd, 1))
    core.daemon.turn(Committed(Intent({"web": web()}, 1), OURS), MembersSeen(members))
    core.read()
    found = samples(scrape(app_of(core)).body.decode())
    weights = {sample for sample in found if sample.startswith("fusis_destination_weight{")}
    assert weights == {
        f"fusis_destination_weight{{destination={name},service=web}}" for name in (odd[0], odd[1], "no\\udcffutf8")
    }
    assert not any(sample.startswith("fusis_up") for sample in found)


def test_services_and_destinations_are_there_by_name(core: LiveCore) -> None:
    found = samples(scrape(app_of(core)).body.decode())
    one = "destination=d1,service=web"
    assert found["fusis_service_connections_total{service=web}"] == 9
    assert found["fusis_service_bytes_total{direction=in,service=web}"] == 1000
    assert found["fusis_service_healthy_destinations{service=web}"] == 2
    assert found["fusis_service_usable_destinations{service=web}"] == 2
    assert found["fusis_service_applied{service=web}"] == 1
    assert found[f"fusis_destination_connections_total{{{one}}}"] == 9
    assert found["fusis_destination_packets_total{destination=d1,direction=out,service=web}"] == 5
    assert found["fusis_destination_bytes_per_second{destination=d1,direction=in,service=web}"] == 0
    assert found[f"fusis_destination_active_connections{{{one}}}"] == 4
    assert found[f"fusis_destination_inactive_connections{{{one}}}"] == 2
    assert found[f"fusis_destination_weight{{{one}}}"] == 3
    healthy = [found[f"fusis_destination_healthy{{destination={name},service=web}}"] for name in ("d1", "d2", "rs3")]
    assert healthy == [1, 0, 1]
    assert found["fusis_destination_state{destination=d2,service=web,state=down}"] == 1


def test_what_is_not_ours_is_there_by_its_key(core: LiveCore) -> None:
    text = scrape(app_of(core)).body.decode()
    found = samples(text)
    assert found["fusis_destination_weight{destination=10.9.9.10:443,service=tcp/10.9.9.9:443}"] == 1
    info = 'fusis_service_info{service="tcp/10.9.9.9:443",key="tcp/10.9.9.9:443",scheduler="rr",foreign="true"} 1'
    assert info in text.splitlines()
    assert not [key for key in found if "state" in key and "10.9.9.9" in key]


def test_the_services_of_path_checks_are_not_shown_and_no_orphans(core: LiveCore) -> None:
    assert [key for key in core.reading.entries if key.mark is not None], "they are in the kernel"
    text = scrape(app_of(core)).body.decode()
    assert "fwmark" not in text
    assert samples(text)["fusis_orphans{}"] == 0


def test_no_sample_is_there_twice_and_a_family_is_one_group(core: LiveCore) -> None:
    lines = scrape(app_of(core)).body.decode().splitlines()
    keys = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert [key for key, number in Counter(keys).items() if number > 1] == []
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) > 40
    assert all(line.split(" ", 3)[3] for line in lines if line.startswith("# HELP")), "each says what it is"


def test_what_the_kernel_has_not_has_no_counters(core: LiveCore) -> None:
    core.reading = Reading(float("-inf"))
    found = samples(scrape(app_of(core)).body.decode())
    assert found["fusis_destination_weight{destination=d1,service=web}"] == 3
    assert not [key for key in found if re.match(r"fusis_\w+_(connections|packets|bytes)", key)]
    assert "fusis_statistics_age_seconds{}" not in found


def test_the_controller_tells_of_itself(core: LiveCore) -> None:
    core.counted.storing.note(0.003)
    core.daemon.fake.traffic(str(WEB_KEY), "10.0.0.11:80")
    found = samples(scrape(app_of(core)).body.decode())
    assert found["fusis_build_info{version=1.2.3}"] == 1
    added = core.counted.operations["add destination", "done"]
    assert found["fusis_operations_total{operation=add destination,result=done}"] == added >= 2
    assert found["fusis_store_seconds_bucket{le=0.0025}"] == 0
    assert found["fusis_store_seconds_bucket{le=0.005}"] == found["fusis_store_seconds_count{}"] == 1
    assert found["fusis_reaction_seconds_count{}"] >= 1
    assert found["fusis_turn_seconds_count{}"] > found["fusis_reaction_seconds_count{}"]
    assert found["fusis_serf_connected{}"] == 1
    assert found["fusis_nodes{status=alive}"] == 1
    assert found["fusis_problems{}"] == len(core.snapshot().status["problems"])  # type: ignore[arg-type]
    assert (found["fusis_drift_total{}"], found["fusis_orphans{}"]) == (0, 0)
    assert found["process_open_fds{}"] > 0


def test_orphans_are_services_of_ours_that_nobody_wants_and_the_kernel_has(core: LiveCore) -> None:
    core.daemon.control.enter(Committed(Intent({}, 2)))  # its VIP is on the host still, so it stays for a moment
    core.daemon.control.turn()
    assert samples(scrape(app_of(core)).body.decode())["fusis_orphans{}"] == 1
    core.daemon.turn()
    assert samples(scrape(app_of(core)).body.decode())["fusis_orphans{}"] == 0


def test_requests_are_counted_by_route_and_no_client_makes_labels(core: LiveCore) -> None:
    app = app_of(core)
    for path in ("/services/web", "/services/other", "/nosuch", "/nosuch2"):
        call(app, "GET", path)
    call(app, "BREW", "/services")
    call(app, "BREW2", "/services")
    call(app, "POST", "/services", {}, peer="10.0.0.9")
    found = samples(scrape(app).body.decode())
    counted = {key: value for key, value in found.items() if key.startswith("fusis_http_requests_total")}
    assert counted == {
        "fusis_http_requests_total{code=200,method=GET,route=/services/<name>}": 1,
        "fusis_http_requests_total{code=404,method=GET,route=/services/<name>}": 1,
        "fusis_http_requests_total{code=404,method=GET,route=}": 2,
        "fusis_http_requests_total{code=405,method=other,route=}": 2,
        "fusis_http_requests_total{code=403,method=POST,route=/services}": 1,
    }
    assert found["fusis_http_request_seconds_count{}"] == 7


def test_the_text_of_the_table_is_kept_until_there_is_another(core: LiveCore) -> None:
    app = app_of(core)
    assert samples(scrape(app).body.decode())["fusis_service_connections_total{service=web}"] == 9
    core.daemon.fake.traffic(str(WEB_KEY), "10.0.0.11:80", connections=1)
    assert samples(scrape(app).body.decode())["fusis_service_connections_total{service=web}"] == 9
    core.read()
    assert samples(scrape(app).body.decode())["fusis_service_connections_total{service=web}"] == 10
    core.daemon.turn(ProbeChanged(check(1), down(core.daemon.clock.now_s)))
    assert samples(scrape(app).body.decode())["fusis_destination_weight{destination=d1,service=web}"] == 0


def test_it_is_packed_for_who_takes_gzip(core: LiveCore) -> None:
    app = app_of(core)
    plain, packed = scrape(app), scrape(app, HTTP_ACCEPT_ENCODING="gzip")
    assert (plain.headers.get("Content-Encoding"), packed.headers["Content-Encoding"]) == (None, "gzip")
    assert packed.headers["Content-Type"] == plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples(gzip.decompress(packed.body).decode()).keys() >= samples(plain.body.decode()).keys()


def test_prometheus_client_is_imported_when_it_is_asked_for() -> None:
    said = "import sys, fusisd.daemon; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_without_prometheus_client_it_is_503_and_says_how_to_get_it(
    core: LiveCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fusisd.web.collector", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = call(app_of(core), "GET", "/metrics")
    assert answer.status == 503
    assert "pip install 'pyipvs[fusisd]'" in answer.json["error"]


# The native API.


def test_statistics_by_name(core: LiveCore) -> None:
    app = app_of(core)
    core.daemon.clock.now_s += 0.25
    shown = call(app, "GET", "/v1/services/web/statistics").json
    assert (shown["name"], shown["age_ms"], shown["problem"]) == ("web", 250.0, "")
    assert (shown["statistics"]["connections"], shown["statistics"]["bytes_in_per_s"]) == (9, 0)
    assert (shown["destinations"]["d1"]["active"], shown["destinations"]["d1"]["packets_out"]) == (4, 5)
    assert shown["destinations"].keys() == {"d1", "d2", "rs3"}
    every = call(app, "GET", "/v1/statistics").json
    assert every["services"] == {"web": {key: shown[key] for key in ("statistics", "destinations")}}
    assert call(app, "GET", "/v1/services/nosuch/statistics").status == 404
    assert call(app, "GET", "/v1/statistics", QUERY_STRING="x=1").status >= 400


def test_statistics_of_what_the_kernel_has_not_are_null(core: LiveCore) -> None:
    core.reading = Reading(float("-inf"))
    shown = call(app_of(core), "GET", "/v1/services/web/statistics").json
    assert (shown["age_ms"], shown["statistics"], shown["destinations"]["d1"]) == (None, None, None)


# The documents.


def exported(core: LiveCore) -> set[str]:
    """The names that a query may use."""
    text = scrape(app_of(core)).body.decode()
    return {line.split("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")}


def families(core: LiveCore) -> set[str]:
    text = scrape(app_of(core)).body.decode()
    return set(re.findall(r"^# TYPE (fusis_\w+)", text, re.MULTILINE))


def named(text: str) -> set[str]:
    return set(re.findall(r"\bfusis_\w+", text))


@pytest.fixture
def all_there(core: LiveCore) -> LiveCore:
    """With a request and a refusal, so that every family has a sample."""
    call(app_of(core), "GET", "/healthz")
    return core


def test_the_dashboard_asks_for_metrics_that_there_are(all_there: LiveCore) -> None:
    board = json.loads((ROOT / "docs/grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked += [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    assert len(asked) > 10
    assert set().union(*map(named, asked)) - exported(all_there) - {"fusis_http_requests_total"} == set()
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(places) == len(set(places)), "no panel lies on another"


def test_the_alerts_ask_for_metrics_that_there_are(all_there: LiveCore) -> None:
    groups = yaml.safe_load((ROOT / "docs/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 5
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}
        asked = named(rule["expr"])
        assert asked or "up{" in rule["expr"], rule["alert"]
        assert asked - exported(all_there) - {"fusis_http_requests_total"} == set(), rule["alert"]


def test_every_metric_is_in_the_document_and_no_other(core: LiveCore) -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(fusis_\w+)`", text, re.MULTILINE)
    assert set(rows) == families(core)
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize(
    ("said", "takes"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("GZIP", True), ("x-gzip", True), ("", False), ("br", False),
     ("gzip;q=0", False), ("gzip; q=0.000, identity", False), ("notgzip", False)],
)  # fmt: skip
def test_gzip_goes_to_who_takes_it(core: LiveCore, said: str, takes: bool) -> None:
    assert ("Content-Encoding" in scrape(app_of(core), HTTP_ACCEPT_ENCODING=said).headers) is takes
