"""A whole table as a file: what it would change, made so at once or not at all, and what of it is whose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fusisd.commands import AddDestination, AddService
from tests.fusisd.test_committer import Whole
from tests.fusisd.test_web_v1 import ask as ask
from tests.fusisd.test_web_v1 import problem
from tests.fusisd.web_helpers import Answer
from tests.fusisd.world import at, web

Ask = Callable[..., Awaitable[Answer]]

RS1, RS2 = ({"address": f"10.0.0.1{n}", "port": 80} for n in (1, 2))
WEB = {"protocol": "tcp", "address": "10.0.0.1", "port": 80, "scheduler": "wlc", "destinations": {"rs1": RS1, "rs2": RS2}}
DNS = {"key": "udp/10.0.0.1:53"}


def file(managed_by: str = "lb", **services: Any) -> dict[str, Any]:
    return {"managed_by": managed_by, "services": services}


async def applied(ask: Ask, asked: dict[str, Any], prune: bool = False) -> list[tuple[str, str]]:
    """What was done, object by object; first it was planned, in the same words."""
    query = {"QUERY_STRING": f"prune={int(prune)}"}
    answer = await ask("POST", "/v1/plan", asked, **query)
    assert answer.status == 200, answer.body
    planned = answer.json["changes"]
    answer = await ask("POST", "/v1/apply", asked, **query)
    assert (answer.status, answer.json["changes"]) == (200, planned), answer.body
    return [(row["action"], "/".join(filter(None, (row["service"], row["destination"])))) for row in planned]


def test_a_file_is_applied_whole_and_again_there_is_nothing_to_do(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        asked = file(web=WEB, dns=DNS)
        made = [("create", name) for name in ("web", "web/rs1", "web/rs2", "dns")]
        assert await applied(ask, asked) == made
        assert (await ask("GET", "/v1/status")).json["revision"] == 1, "one commit"
        assert w.daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
        shown = (await ask("GET", "/v1/services/web")).json
        assert (shown["managed_by"], shown["destinations"]["rs1"]["managed_by"]) == ("lb", "lb")
        assert await applied(ask, asked) == []
        assert (await ask("GET", "/v1/status")).json["revision"] == 1

    ask(scenario)


def test_what_a_file_did_not_make_it_removes_only_with_prune(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        await applied(ask, file(web=WEB, dns=DNS))
        await ask("POST", "/v1/services/web/destinations", {"name": "hand", "address": "10.0.0.19", "port": 80})
        await ask("POST", "/v1/services", {"name": "mine", "protocol": "tcp", "address": "10.0.0.2", "port": 80})
        assert await applied(ask, file("other", web2={**WEB, "port": 81, "destinations": {}})) == [("create", "web2")]
        less = file(web={**WEB, "destinations": {"rs1": RS1}})
        assert await applied(ask, less) == [("drain", "web/rs2"), ("drain", "dns")]
        assert set(w.daemon.control.intent.services) == {"web", "dns", "mine", "web2"}
        assert await applied(ask, less) == [], "what drains already is left to it"
        assert await applied(ask, less, prune=True) == [("drain", "web/hand"), ("drain", "mine"), ("drain", "web2")]

    ask(scenario)


def test_what_an_operator_made_belongs_to_the_file_that_names_it(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        await w.committer.submit(AddService(web(scheduler="wlc")), "test")
        await w.committer.submit(AddDestination("web", at(1, "rs1")), "test")
        assert await applied(ask, file(web=WEB)) == [("change", "web"), ("change", "web/rs1"), ("create", "web/rs2")]
        assert w.daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
        seed = {"Name": "web", "Host": "10.0.0.1", "Port": 80, "Protocol": "tcp", "Scheduler": "wlc"}
        assert (await ask("POST", "/services", seed)).status == 200
        assert (await ask("POST", "/v1/services", {**WEB, "name": "web"})).status == 200
        assert (await ask("POST", "/v1/services/web/destinations", {"name": "rs1", **RS1})).status == 200
        assert await applied(ask, file(web=WEB)) == [], "the same again by another way takes nothing away"

    ask(scenario)


def test_what_is_only_called_otherwise_keeps_its_place_in_the_kernel(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        await applied(ask, file(web=WEB))
        renamed = {**WEB, "destinations": {"one": RS1, "rs2": RS2}}
        planned = (await ask("POST", "/v1/plan", file(www=renamed))).json
        assert [row["action"] for row in planned["changes"]] == ["create", "create", "create", "delete"]
        assert planned["steps"] == []
        ops = w.daemon.control._counts.ops
        await applied(ask, file(www=renamed))
        assert w.daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
        assert w.daemon.control._counts.ops == ops, "nothing was done to the kernel"

    ask(scenario)


def test_a_service_gets_another_port_with_its_destinations(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        await applied(ask, file(web=WEB))
        moved = {**WEB, "port": 81, "destinations": {"rs1": {**RS1, "port": 81}}}
        done = await applied(ask, file(web=moved))
        assert ("change", "web") in done
        assert ("change", "web/rs1") in done
        assert {seen.service.key.port for seen in w.daemon.ipvs.services()} == {81}

    ask(scenario)


def test_a_file_that_cannot_be_is_refused_whole_and_says_where(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        w.daemon.ipvs.add_service("udp/10.0.0.1:53")
        mapped = {**WEB, "destinations": {"rs1": {**RS1, "port": 81}}}
        wrong: list[tuple[dict[str, Any], int, str]] = [
            (file(web=WEB, dns=DNS), 409, "services.dns"),
            (file(web=mapped), 422, "services.web.destinations.rs1.port"),
            (file(web={**WEB, "port": 99999}), 422, "services.web.port"),
            (file(web={**WEB, "destinations": {"rs1": {**RS1, "wieght": 1}}}), 422, "services.web.destinations.rs1.wieght"),
            (file(web=WEB, other=WEB), 422, "services"),
            (file(web={**WEB, "scheduler": "quick"}), 422, "services.web.scheduler"),
            (file(web=None), 422, "services.web"),
            (file("a b", web=WEB), 422, "managed_by"),
            ({"services": {}}, 422, "managed_by"),
        ]
        for route in ("plan", "apply"):
            for asked, status, field in wrong:
                told = problem(await ask("POST", f"/v1/{route}", asked))
                assert (told["status"], told["field"]) == (status, field), told
                assert told["detail"].startswith(field.rpartition(".")[0]), told
        assert (w.daemon.control.intent.revision, w.daemon.control.intent.services) == (0, {})

    ask(scenario)


def test_a_plan_tells_what_would_be_wanted_and_done_and_changes_nothing(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        checked = {**WEB, "check": {"kind": "tcp"}, "destinations": {"rs1": {**RS1, "method": "nat"}}}
        told = (await ask("POST", "/v1/plan", file(web=checked))).json
        fields = told["changes"][0]["fields"]
        assert (fields["scheduler"], fields["managed_by"]) == (
            {"before": None, "after": "wlc"},
            {"before": None, "after": "lb"},
        )
        assert [step["what"] for step in told["steps"]] == [
            "add address 10.0.0.1", "add service tcp/10.0.0.1:80 (wlc)",
            "add destination 10.0.0.11:80 to tcp/10.0.0.1:80 (nat, weight 1)",
        ], "as if its check had passed and its masquerade rule were there"  # fmt: skip
        assert (w.daemon.control.intent.services, w.daemon.ipvs.services()) == ({}, [])
        await applied(ask, file(web=WEB))
        less = file(web={**WEB, "scheduler": "rr", "destinations": {"rs1": {**RS1, "weight": 5}}})
        told = (await ask("POST", "/v1/plan", less)).json
        assert told["changes"][0]["fields"] == {"scheduler": {"before": "wlc", "after": "rr"}}
        assert [step["what"].split(" (")[0] for step in told["steps"]] == [
            "update service tcp/10.0.0.1:80",
            "update destination 10.0.0.11:80 of tcp/10.0.0.1:80",
            "update destination 10.0.0.12:80 of tcp/10.0.0.1:80",
        ]
        assert w.daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}

    ask(scenario)


def test_an_address_is_allocated_as_it_was_planned_and_kept(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        asked = {**file(web={"protocol": "tcp", "port": 80}, dns={"protocol": "udp", "port": 53}), "ranges": ["10.0.1.0/30"]}
        for route in ("plan", "plan", "apply"):
            answer = await ask("POST", f"/v1/{route}", asked)
            rows = {row["service"]: row["fields"] for row in answer.json["changes"]}
            found = {rows[name]["address"]["after"] for name in ("web", "dns")}
            assert found == {"10.0.1.1", "10.0.1.2"}, (route, "what a plan was promised is free again")
        assert await applied(ask, asked) == []
        assert [seen.service.key.address in found for seen in w.daemon.ipvs.services()] == [True, True]

    ask(scenario)


@pytest.mark.parametrize(
    ("method", "path", "body", "action", "steps"),
    [
        ("PATCH", "/v1/services/web", {"scheduler": "mh"}, "change", 1),
        ("DELETE", "/v1/services/web", None, "drain", 1),
        ("DELETE", "/v1/services/web?now=1", None, "delete", 2),
        ("DELETE", "/v1/services/web/destinations/rs1?now=1", None, "delete", 1),
        ("PUT", "/v1/services/web/destinations/rs3", {"address": "10.0.0.13", "port": 80}, "create", 1),
        ("POST", "/v1/services/web/release", None, "delete", 0),
        ("PUT", "/v1/settings", {"ranges": ["10.1.0.0/24"]}, "change", 0),
    ],
)
def test_any_change_can_be_foreseen(  # noqa: F811
    ask: Any, method: str, path: str, body: Any, action: str, steps: int
) -> None:
    async def scenario(w: Whole, ask: Ask) -> None:
        await applied(ask, file(web={**WEB, "destinations": {"rs1": RS1}}))
        before = w.daemon.control.intent
        path_, _, query = path.partition("?")
        answer = await ask(method, path_, body, QUERY_STRING=f"{query}&dry_run=1".lstrip("&"))
        assert (answer.status, answer.json["changes"][-1]["action"]) == (200, action), answer.body
        assert len(answer.json["steps"]) == steps, answer.json
        assert w.daemon.control.intent is before
        assert w.daemon.weights() == {"10.0.0.11": 1}

    ask(scenario)


def test_of_two_services_at_one_address_one_is_released_and_nothing_happens_to_it(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        await applied(ask, file(web=WEB, tls={**WEB, "port": 443, "destinations": {}}))
        answer = await ask("POST", "/v1/services/tls/release", None, QUERY_STRING="dry_run=1")
        assert [step for step in answer.json["steps"] if "address" in step["what"]] == []

    ask(scenario)


def test_what_is_foreseen_is_what_is_done(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        asked = file(web=WEB, dns=DNS)
        steps = (await ask("POST", "/v1/plan", asked)).json["steps"]
        await ask("POST", "/v1/apply", asked)
        done = [event.text for event in w.bridge.events.last(100, lambda event: event.kind == "op")]
        assert sorted(done) == sorted(step["what"] for step in steps if "address" not in step["what"])

    ask(scenario)


def test_what_was_planned_is_applied_only_if_nothing_has_changed_since(ask: Any) -> None:  # noqa: F811
    async def scenario(w: Whole, ask: Ask) -> None:
        planned = (await ask("POST", "/v1/plan", file(web=WEB))).json["revision"]
        assert (await ask("POST", "/v1/apply", file(dns=DNS))).status in (200, 202)
        stale = await ask("POST", "/v1/apply", file("other", web=WEB), QUERY_STRING=f"revision={planned}")
        assert (stale.status, "plan again" in stale.json["detail"]) == (412, True)
        assert w.daemon.control.intent.services.keys() == {"dns"}
        planned = (await ask("POST", "/v1/plan", file("other", web=WEB))).json["revision"]
        done = await ask("POST", "/v1/apply", file("other", web=WEB), QUERY_STRING=f"revision={planned}")
        assert done.status in (200, 202)

    ask(scenario)
