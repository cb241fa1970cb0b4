"""The routes of 2016: bytes as Go printed them, and everything that may be wrong with a body."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from fusisd.commands import AddDestination, AddService, DeleteDestination, DeleteService
from fusisd.ports import DestinationView, ServiceView, Snapshot
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.server import UnixListener
from pyipvs import ForwardingMethod, Protocol, ServiceKey
from tests.fusisd.web_helpers import JSON, SERVICE, TOKEN, Client, MemoryCore, ask, call, serving

FOREIGN = ServiceView("", ServiceKey(Protocol.TCP, "10.0.0.1", 80), "rr", 0, True, True, "", ())
DESTINATION = {
    "Name": "d1",
    "Host": "192.168.0.1",
    "Port": 80,
    "Weight": 5,
    "Mode": "nat",
    "service_id": "web",
}


@pytest.fixture
def core() -> MemoryCore:
    return MemoryCore()


@pytest.fixture
def app(core: MemoryCore) -> Any:
    return make_app(core, WritePolicy.for_token(TOKEN))


@pytest.fixture
def app_with_web(app: Any) -> Any:
    assert call(app, "POST", "/services", SERVICE).status == 200
    return app


# What the seed document shows.


def test_no_services_are_three_bytes(app: Any) -> None:
    answer = call(app, "GET", "/services")
    assert (answer.status, answer.body) == (200, b"[]\n")
    assert (answer.headers["Content-Type"], answer.headers["Content-Length"]) == (JSON, "3")


def test_a_service_made_with_ipvsadm_is_printed_as_the_document_prints_it() -> None:
    answer = call(make_app(MemoryCore((FOREIGN,)), WritePolicy.for_token(TOKEN)), "GET", "/services")
    assert answer.body == (
        b'[{"Name":"","Host":"10.0.0.1","Port":80,"Protocol":"tcp","Scheduler":"rr","Destinations":[]}]\n'
    )
    assert answer.headers["Content-Length"] == "94"


def test_the_server_sends_these_headers(app: Any) -> None:
    with serving(app) as server:
        answer = ask(
            server, b"GET /services HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/7.47.0\r\nAccept: */*\r\n\r\n"
        )
    assert answer.body == b"[]\n"
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["Content-Length"] == "3"
    assert answer.headers["Date"].endswith(" GMT")


# Services.


def test_a_service_is_made_and_echoed(core: MemoryCore, app: Any) -> None:
    answer = call(app, "POST", "/services", SERVICE)
    assert (answer.status, answer.headers["Content-Type"]) == (200, JSON)
    assert answer.body == (
        b'{"Name":"web","Host":"10.0.0.1","Port":80,"Protocol":"tcp","Scheduler":"rr","Destinations":[]}\n'
    )
    (command, who) = core.seen[0]
    assert isinstance(command, AddService)
    assert command.service.key == ServiceKey.parse("tcp/10.0.0.1:80")
    assert who == "unix"


def test_who_asked_over_tcp_is_told_to_the_core(core: MemoryCore, app: Any) -> None:
    call(app, "POST", "/services", SERVICE, "127.0.0.1", HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
    token = WritePolicy.for_token(TOKEN).fingerprint
    assert core.seen[0][1] == f"tcp 127.0.0.1 token={token}"
    assert (len(token), token in TOKEN) == (8, False)


def test_the_same_service_again_is_a_success(app_with_web: Any) -> None:
    assert call(app_with_web, "POST", "/services", SERVICE).status == 200


def test_another_service_of_that_name_is_422_with_one_sentence(app_with_web: Any) -> None:
    answer = call(app_with_web, "POST", "/services", {**SERVICE, "Port": 81})
    assert answer.status == 422
    assert answer.json == {
        "error": "service web exists as tcp/10.0.0.1:80 with other settings; delete it first"
    }


def test_a_service_can_bring_its_destinations(app: Any) -> None:
    answer = call(app, "POST", "/services", {**SERVICE, "Destinations": [DESTINATION]})
    assert (answer.status, answer.json["Destinations"]) == (200, [DESTINATION])
    assert call(app, "GET", "/services/web").json["Destinations"] == [DESTINATION]


def test_one_service_is_shown_by_its_name(app_with_web: Any) -> None:
    answer = call(app_with_web, "GET", "/services/web")
    assert (answer.status, answer.json) == (200, {**SERVICE, "Destinations": []})


def test_a_service_is_deleted_with_an_empty_answer(core: MemoryCore, app_with_web: Any) -> None:
    answer = call(app_with_web, "DELETE", "/services/web")
    assert (answer.status, answer.body) == (200, b"")
    assert (answer.headers["Content-Type"], answer.headers["Content-Length"]) == ("text/html", "0")
    assert core.seen[-1][0] == DeleteService("web", 60.0)
    assert call(app_with_web, "GET", "/services").body == b"[]\n"
    assert call(app_with_web, "GET", "/services/web").status == 404


def test_now_means_without_waiting_for_connections(core: MemoryCore, app_with_web: Any) -> None:
    call(app_with_web, "POST", "/services/web/destinations", DESTINATION)
    assert call(app_with_web, "DELETE", "/services/web/destinations/d1", QUERY_STRING="now=1").status == 200
    assert core.seen[-1][0] == DeleteDestination("web", "d1")
    assert call(app_with_web, "DELETE", "/services/web", QUERY_STRING="now=1").status == 200
    assert core.seen[-1][0] == DeleteService("web")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/services/none", None),
        ("DELETE", "/services/none", None),
        ("POST", "/services/none/destinations", {**DESTINATION, "service_id": ""}),
        ("DELETE", "/services/none/destinations/d1", None),
    ],
)
def test_an_unknown_name_is_404_json(app_with_web: Any, method: str, path: str, body: Any) -> None:
    answer = call(app_with_web, method, path, body)
    assert (answer.status, answer.json) == (404, {"error": "there is no service 'none'"})


def test_ipv6_udp_and_sctp_are_accepted_and_addresses_become_canonical(app: Any) -> None:
    dns = {"Name": "dns", "Host": "FD00:0::53", "Port": 53, "Protocol": "udp", "Scheduler": "wlc"}
    assert call(app, "POST", "/services", dns).json["Host"] == "fd00::53"
    diameter = {**SERVICE, "Name": "dia", "Protocol": "sctp", "Port": 3868}
    assert call(app, "POST", "/services", diameter).json["Protocol"] == "sctp"


def test_a_foreign_service_shows_its_destinations_without_names_and_cannot_be_addressed() -> None:
    there = DestinationView("", "10.0.0.2", 80, 0, ForwardingMethod.LOCAL, "foreign", "", "", True)
    mark = ServiceView("", ServiceKey.fwmark(7), "wlc", 0, True, True, "", (there,))
    app = make_app(MemoryCore((mark,)), WritePolicy.for_token(TOKEN))
    assert call(app, "GET", "/services").body == (
        b'[{"Name":"","Host":"fwmark/7","Port":0,"Protocol":"","Scheduler":"wlc","Destinations":'
        b'[{"Name":"","Host":"10.0.0.2","Port":80,"Weight":0,"Mode":"local","service_id":""}]}]\n'
    )
    assert call(app, "GET", "/services/").status == 404
    assert call(app, "DELETE", "/services/").status == 404


def test_names_in_the_path_are_percent_decoded_once(core: MemoryCore, app: Any) -> None:
    call(app, "POST", "/services", {**SERVICE, "Name": "a:b"})
    with serving(app) as server:
        assert ask(server, b"GET /services/a%3Ab HTTP/1.1\r\nHost: x\r\n\r\n").json["Name"] == "a:b"
        assert ask(server, b"GET /services/a%253Ab HTTP/1.1\r\nHost: x\r\n\r\n").status == 404
        assert ask(server, b"GET /services/a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n").status == 404
        assert ask(server, b"GET /services/%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n").status == 404


class Counting(tuple[ServiceView, ...]):
    """Services that count how often they are walked through."""

    walks = 0

    def __iter__(self) -> Iterator[ServiceView]:
        self.walks += 1
        return super().__iter__()


def test_an_unchanged_snapshot_is_rendered_once(core: MemoryCore, app: Any) -> None:
    views = Counting((FOREIGN,))
    core.published = Snapshot(1, 0.0, views, {})
    for _ in range(5):
        assert call(app, "GET", "/services").json[0]["Host"] == "10.0.0.1"
    assert views.walks == 1
    call(app, "POST", "/services", {**SERVICE, "Port": 81})
    assert len(call(app, "GET", "/services").json) == 1


# Destinations.


def test_a_destination_is_added_and_echoed(core: MemoryCore, app_with_web: Any) -> None:
    answer = call(app_with_web, "POST", "/services/web/destinations", DESTINATION)
    assert answer.status == 200
    assert answer.body == (
        b'{"Name":"d1","Host":"192.168.0.1","Port":80,"Weight":5,"Mode":"nat","service_id":"web"}\n'
    )
    command = core.seen[-1][0]
    assert isinstance(command, AddDestination)
    assert command.destination.method is ForwardingMethod.NAT


def test_weight_is_1_and_mode_route_unless_said_and_the_service_is_that_of_the_path(
    app_with_web: Any,
) -> None:
    body = {"name": "d1", "host": "192.168.0.1", "port": 80}
    answer = call(app_with_web, "POST", "/services/web/destinations", body)
    assert answer.json == {**DESTINATION, "Weight": 1, "Mode": "route"}


def test_a_weight_of_0_is_kept(app_with_web: Any) -> None:
    answer = call(app_with_web, "POST", "/services/web/destinations", {**DESTINATION, "Weight": 0})
    assert answer.json["Weight"] == 0
    assert call(app_with_web, "GET", "/services/web").json["Destinations"][0]["Weight"] == 0


def test_a_destination_is_deleted_with_an_empty_answer(core: MemoryCore, app_with_web: Any) -> None:
    call(app_with_web, "POST", "/services/web/destinations", DESTINATION)
    answer = call(app_with_web, "DELETE", "/services/web/destinations/d1")
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"", "text/html")
    assert core.seen[-1][0] == DeleteDestination("web", "d1", 60.0)
    assert call(app_with_web, "GET", "/services/web").json["Destinations"] == []


def test_what_ipvs_cannot_do_is_422_with_the_field_in_this_dialect_s_words(app_with_web: Any) -> None:
    answer = call(
        app_with_web, "POST", "/services/web/destinations", {**DESTINATION, "Mode": "route", "Port": 81}
    )
    assert answer.status == 422
    assert list(answer.json["errors"]) == ["Port"]


def test_a_service_id_that_contradicts_the_path_is_refused(core: MemoryCore, app_with_web: Any) -> None:
    answer = call(app_with_web, "POST", "/services/web/destinations", {**DESTINATION, "service_id": "mail"})
    assert answer.status == 422
    assert answer.json == {
        "errors": {"service_id": "service_id 'mail' is not the service of the path, 'web'"}
    }
    assert len(core.seen) == 1


# Keys.


def test_keys_are_read_in_any_case_and_in_the_words_of_2018(app: Any) -> None:
    body = {"NAME": "web", "Address": "10.0.0.1", "pOrT": 80, "protocol": "tcp", "SCHEDULER": "rr"}
    assert call(app, "POST", "/services", body).json == {**SERVICE, "Destinations": []}
    body = {
        "Name": "d1",
        "address": "192.168.0.1",
        "Port": 80,
        "Weight": 5,
        "Mode": "nat",
        "ServiceId": "web",
    }
    assert call(app, "POST", "/services/web/destinations", body).json == DESTINATION


def test_unknown_keys_are_ignored_but_named(app: Any) -> None:
    body = {**SERVICE, "colour": "red", "x\r\nSet-Cookie": 1, "Destinations": [{**DESTINATION, "Zeal": 9}]}
    answer = call(app, "POST", "/services", body)
    assert answer.status == 200
    assert answer.headers["X-Fusis-Ignored-Keys"] == r"colour, x\r\nset-cookie, zeal"
    assert "X-Fusis-Ignored-Keys" not in call(app, "POST", "/services", SERVICE).headers


@pytest.mark.parametrize(
    "body",
    [
        b'{"Name":"a","Name":"b"}',
        b'{"Name":"a","name":"b"}',
        b'{"Host":"10.0.0.1","Address":"10.0.0.2"}',
        b'{"x":{"y":1,"Y":2}}',
    ],
)
def test_a_key_twice_is_400(app: Any, body: bytes) -> None:
    answer = call(app, "POST", "/services", body)
    assert answer.status == 400
    assert "twice" in answer.json["error"] or "mean the same" in answer.json["error"]


# Values.


def test_required_fields_that_are_missing_or_zero_are_all_named_in_the_words_of_2016(app: Any) -> None:
    text = "non zero value required"
    assert call(app, "POST", "/services", {**SERVICE, "Host": ""}).json == {"errors": {"Host": text}}
    answer = call(app, "POST", "/services", {"Port": 0, "Name": None})
    assert answer.status == 422
    assert answer.body == (
        b'{"errors":{"Host":"non zero value required","Name":"non zero value required",'
        b'"Port":"non zero value required","Protocol":"non zero value required","Scheduler":"non zero value required"}}\n'
    )


def test_an_empty_destination_is_422(app_with_web: Any) -> None:
    answer = call(app_with_web, "POST", "/services/web/destinations", {})
    assert answer.status == 422
    assert list(answer.json["errors"]) == ["Host", "Name", "Port"]


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("Name", "a/b", "must be 1 to 128 letters"),
        ("Name", "\ud800", "must be 1 to 128 letters"),
        ("Host", "10.0.0.256", "is not an IPv4 or IPv6 address"),
        ("Host", "fe80::1%eth0", "has a zone"),
        ("Host", "0.0.0.0", "must be a unicast address"),
        ("Port", 65536, "must be 1 to 65535"),
        ("Port", -1, "must be 1 to 65535"),
        ("Protocol", "TCP", "must be one of tcp udp sctp"),
        ("Scheduler", "none", "must be one of rr wrr"),
    ],
)
def test_a_wrong_value_is_422_with_the_field_and_a_sentence(
    app: Any, field: str, value: object, part: str
) -> None:
    answer = call(app, "POST", "/services", {**SERVICE, field: value})
    assert answer.status == 422
    assert list(answer.json["errors"]) == [field]
    assert answer.json["errors"][field].startswith(field)
    assert part in answer.json["errors"][field]


@pytest.mark.parametrize(
    ("field", "value"),
    [("Weight", -1), ("Weight", 65536), ("Mode", "masq"), ("Mode", "local"), ("Name", "-")],
)
def test_a_wrong_value_of_a_destination_is_422(app_with_web: Any, field: str, value: object) -> None:
    answer = call(app_with_web, "POST", "/services/web/destinations", {**DESTINATION, field: value})
    assert answer.status == 422
    assert list(answer.json["errors"]) == [field]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Port", "80"),
        ("Port", 80.0),
        ("Port", True),
        ("Port", [80]),
        ("Name", 1),
        ("Host", {}),
        ("Protocol", 6),
    ]
    + [("Destinations", "d1"), ("Destinations", ["d1"]), ("Destinations", {"d1": {}})],
)
def test_a_value_of_the_wrong_type_is_400_and_named(app: Any, field: str, value: object) -> None:
    answer = call(app, "POST", "/services", {**SERVICE, field: value})
    assert answer.status == 400
    assert answer.json["error"].startswith(f"{field} must be ")


def test_two_destinations_of_one_name_in_one_body_are_refused(app: Any) -> None:
    answer = call(app, "POST", "/services", {**SERVICE, "Destinations": [DESTINATION, DESTINATION]})
    assert answer.json == {"errors": {"Destinations": "destination 'd1' is there twice"}}


# Bodies.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{'Name': 'web'}",
        b'{"Name":"web"} trailing',
        b'{"Port":NaN}',
        b'{"Port":-Infinity}',
        b'{"Port":' + b"9" * 5000 + b"}",
        b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a":' * 50_000,
        b'{"Name":"\xff"}',
        '{"Name":"web"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"Name":"web"}',
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_body_that_is_no_json_object_is_400_json(core: MemoryCore, app: Any, body: bytes) -> None:
    answer = call(app, "POST", "/services", body)
    assert (answer.status, answer.headers["Content-Type"]) == (400, JSON)
    assert answer.json["error"].startswith(("the body ", "NaN is", "-Infinity is"))
    assert core.seen == []


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8", ""])
def test_json_and_no_content_type_at_all_are_accepted(app: Any, media_type: str) -> None:
    assert call(app, "POST", "/services", SERVICE, CONTENT_TYPE=media_type).status == 200


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"]
)
def test_another_content_type_is_415_and_says_what_to_set(app: Any, media_type: str) -> None:
    answer = call(app, "POST", "/services", SERVICE, CONTENT_TYPE=media_type)
    assert answer.status == 415
    assert "set the Content-Type header" in answer.json["error"]


def test_a_body_over_the_limit_is_413(app: Any, tmp_path: Any) -> None:
    with serving(app) as server:
        head = b"POST /services HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n"
        assert ask(server, head).status == 413


def test_a_whole_life_over_the_unix_socket(app: Any, tmp_path: Any) -> None:
    path = str(tmp_path / "fusisd.sock")
    with serving(app, UnixListener(path)):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(path)
        body = b'{"name":"web","host":"10.0.0.1","port":80,"protocol":"tcp","scheduler":"rr"}'
        with Client(sock) as client:
            client.say(
                b"POST /services HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert client.answer().status == 200
            client.say(b"GET /services/web HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.answer().json["Name"] == "web"
            client.say(b"DELETE /services/web HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.answer().status == 200
            client.say(b"GET /services HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.answer().body == b"[]\n"
