"""Intent as plain data: what is written comes back as it was, and what is strange is refused with its place."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd.checks import decode_check, encode_check
from fusisd.documents import (
    INTENT,
    decode_intent,
    decode_ranges,
    decode_service,
    encode_intent,
    encode_service,
    export_intent,
    import_intent,
)
from fusisd.errors import Invalid
from fusisd.fields import parsed
from fusisd.model import CheckKind, CheckSettings, CheckSpec, Destination, Intent, Service, Tier
from pyipvs import ForwardingMethod, ServiceFlags, ServiceKey, Timeouts, Tunnel, TunnelType
from tests.fusisd.strategies import checks, intents, json_values, services, spoilt


def over_json(document: Any) -> Any:
    return parsed(json.dumps(document))


@given(services())
def test_a_service_comes_back_from_its_document_as_it_was(service: Service) -> None:
    assert decode_service(service.name, over_json(encode_service(service))) == service


@given(checks())
def test_a_check_comes_back_from_its_document_as_it_was(check: CheckSpec) -> None:
    assert decode_check(over_json(encode_check(check))) == check


@given(intents)
def test_intent_comes_back_from_its_file_as_it_was(intent: Intent) -> None:
    text = export_intent(intent)
    assert text.isascii()
    assert import_intent(text) == intent
    assert export_intent(import_intent(text)) == text


@given(intents, st.randoms())
def test_the_same_intent_gives_the_same_file_in_whatever_order_it_was_made(intent: Intent, random: Any) -> None:
    mixed = list(intent.services.items())
    random.shuffle(mixed)
    assert export_intent(replace(intent, services=dict(mixed), revision=7)) == export_intent(intent)


@given(json_values)
def test_any_json_is_refused_or_understood(value: Any) -> None:
    for decode in (lambda: decode_service("web", value), lambda: decode_check(value), lambda: decode_intent(value)):
        try:
            decode()
        except Invalid as error:
            assert str(error)


@given(intents.map(encode_intent).flatmap(spoilt))
def test_a_file_that_is_nearly_right_is_refused_or_understood(document: Any) -> None:
    try:
        intent = import_intent(json.dumps(document))
    except Invalid as error:
        assert str(error)
    else:
        assert import_intent(export_intent(intent)) == intent


@given(st.text() | st.text('[]{}",:0123456789eEnaN-+ tru', max_size=30))
def test_any_text_is_refused_or_understood(text: str) -> None:
    try:
        import_intent(text)
    except Invalid as error:
        assert str(error)


DESTINATION: dict[str, Any] = {"address": "10.0.0.11", "port": 80, "weight": 1, "method": "nat"}
DOCUMENT: dict[str, Any] = {"key": "tcp/10.0.0.1:80", "scheduler": "rr", "destinations": {"d1": DESTINATION}}


def with_destination(**settings: Any) -> dict[str, Any]:
    return DOCUMENT | {"destinations": {"d1": DESTINATION | settings}}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "None must be an object"),
        ({}, "key is missing"),
        (DOCUMENT | {"key": 7}, "key 7 must be text"),
        (DOCUMENT | {"key": "tcp/nonsense"}, "key: 'nonsense' is not ADDRESS:PORT"),
        (DOCUMENT | {"scheduler": "no such thing"}, "scheduler 'no such thing' must be 1 to 15"),
        (DOCUMENT | {"persistence_s": "60"}, "persistence_s '60' must be a whole number"),
        (DOCUMENT | {"persistence_s": 2**31 - 1}, "persistence_s 2147483647"),
        (DOCUMENT | {"netmask": 64}, "netmask"),
        (DOCUMENT | {"key": "tcp/10.0.0.1:0"}, "port 0"),
        (DOCUMENT | {"excluded": "rs1"}, "excluded 'rs1' must be a list"),
        (DOCUMENT | {"flags": ["one_packet", "magic"]}, r"flags\[1\] 'magic' must be one of one_packet"),
        (DOCUMENT | {"vip": True}, "vip True must be one of managed, external"),
        (DOCUMENT | {"drain_s": float("inf")}, "drain_s inf must be seconds"),
        (DOCUMENT | {"drain_s": 10**400}, "drain_s 1000.* must be seconds"),
        (DOCUMENT | {"colour": "red"}, "colour is not known: misspelt, or of a newer fusisd"),
        (DOCUMENT | {"destinations": []}, "destinations .* must be an object"),
        (DOCUMENT | {"destinations": {"d/1": DESTINATION}}, "destinations.d/1"),
        (DOCUMENT | {"destinations": {"d1": {"port": 80}}}, "destinations.d1.address is missing"),
        (
            DOCUMENT | {"destinations": {"d1": DESTINATION, "d2": DESTINATION}},
            "destinations.d2 is 10.0.0.11 port 80, which d1 is already",
        ),
        (with_destination(address=5), "destinations.d1.address 5 must be text"),
        (with_destination(address="ff02::1"), "destinations.d1.address ff02::1 must be a unicast address"),
        (with_destination(port=True), "destinations.d1.port True must be a whole number"),
        (with_destination(weight=-1), "destinations.d1.weight -1 must be a whole number from 0"),
        (with_destination(method="magic"), "destinations.d1.method 'magic' must be one of nat"),
        (with_destination(lower_threshold=3), "destinations.d1: lower_threshold"),
        (with_destination(tunnel={"type": "gre"}), "destinations.d1: tunnel settings are for method tunnel"),
        (with_destination(method="tunnel", tunnel={"type": "gue"}), "destinations.d1.tunnel: gue needs a tunnel port"),
        (with_destination(check={"kind": "tcp", "fall": 0}), "destinations.d1.check.fall 0 must be a whole number"),
    ],
)
def test_a_service_s_document_is_refused_with_the_place(document: object, said: str) -> None:
    with pytest.raises(Invalid, match=f"^{said}"):
        decode_service("web", document)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "kind None must be one of none, tcp, http"),
        ({"kind": "tcp", "path": "/"}, "path is not known for a check of kind tcp"),
        ({"kind": "tcp", "timeout_s": 0}, "timeout_s 0 must be seconds from 0.01"),
        ({"kind": "http", "path": "/a b"}, "path '/a b' must begin with /"),
        ({"kind": "http", "path": "/\r\nX: y"}, "path"),
        ({"kind": "http", "host": "a\r\nX: y"}, "host"),
        ({"kind": "http", "codes": []}, r"codes \[\] must be a list of 1"),
        ({"kind": "http", "codes": ["300-200"]}, r"codes\[0\] '300-200' must begin with the lower code"),
        ({"kind": "http", "codes": [200]}, r"codes\[0\] 200 must be text"),
        ({"kind": "http", "body": "\ud800"}, "body"),
        ({"kind": "udp", "send": "abc"}, "send 'abc' must be at most 1024 bytes as hex"),
        ({"kind": "dns"}, "name is missing for a check of kind dns"),
        ({"kind": "dns", "name": "a..b"}, "name 'a..b' must be a domain name"),
        ({"kind": "dns", "name": "a" * 64}, "name"),
        ({"kind": "script", "argv": []}, "argv"),
        ({"kind": "script", "argv": ["true"]}, r"argv \['true'\] must begin with the program's absolute path"),
        ({"kind": "script", "argv": ["/bin/true", "\0"]}, r"argv\[1\]"),
    ],
)
def test_a_check_s_document_is_refused_with_the_place(document: object, said: str) -> None:
    with pytest.raises(Invalid, match=f"^{said}"):
        decode_check(document)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no valid JSON: .*line 1 column 1"),
        ("{\n  'schema': 1}", "line 2 column 3"),
        ("[" * 100_000, "nested too deeply"),
        ('{"schema": NaN}', "NaN is no JSON number"),
        ('{"schema": 1, "schema": 1}', "key 'schema' stands twice"),
        ("{}", "schema is missing"),
        ('{"schema": 2, "what": 1}', "schema 2 is of a newer fusisd"),
        ('{"schema": 1, "what": 1}', "what is not known"),
        ('{"schema": 1, "ranges": ["10.0.0.0/24", "10.0.0.128/25"]}', r"ranges\[1\] '10.0.0.128/25' overlaps 10.0.0.0/24"),
        ('{"schema": 1, "ranges": ["10.0.0.1/24"]}', r"ranges\[0\]: 10.0.0.1/24 has host bits set"),
        ('{"schema": 1, "ranges": ["224.0.0.0/4"]}', r"ranges\[0\] '224.0.0.0/4' must be of unicast"),
        ('{"schema": 1, "timeouts": {"tcp_s": -1}}', "timeouts.tcp_s -1"),
        ('{"schema": 1, "services": {"a b": {"key": "tcp/10.0.0.1:80"}}}', "services.a b"),
        ('{"schema": 1, "services": {"web": {"key": "tcp/10.0.0.1:80", "check": {"kind": "icmp"}}}}',
         "services.web.check.kind 'icmp' must be one of"),
        ('{"schema": 1, "services": {"a": {"key": "fwmark/7"}, "b": {"key": "fwmark/7"}}}',
         "services.b is fwmark/7, which a is already"),
    ],
)  # fmt: skip
def test_a_file_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        import_intent(text)


def test_a_file_reads_as_a_person_would_write_it() -> None:
    check = CheckSpec(CheckKind.HTTP, path="/health", timing=CheckSettings(interval_s=2.0))
    rows = [
        Destination("rs1", "10.0.0.11", 80),
        Destination("rs2", "fd00::12", 80, 0, ForwardingMethod.TUNNEL, 100, 80, Tunnel(TunnelType.GUE, 6080),
                    Tier.BACKUP, CheckSpec(CheckKind.NONE), 30.0),
    ]  # fmt: skip
    web = Service("web", ServiceKey.parse("tcp/10.0.0.1:80"), "mh", destinations={row.name: row for row in rows},
                  flags=ServiceFlags.SCHED2, vip_managed=False, check=check)  # fmt: skip
    timing = {"interval_s": 1.0, "timeout_s": 0.5, "rise": 1, "fall": 2, "fast_interval_s": 0.25}
    document = json.loads(export_intent(Intent({"web": web}, 7, Timeouts(tcp_s=900), ("10.9.0.0/24",))))
    assert document == {
        "schema": 1,
        "timeouts": {"tcp_s": 900},
        "ranges": ["10.9.0.0/24"],
        "services": {
            "web": {
                "key": "tcp/10.0.0.1:80",
                "scheduler": "mh",
                "flags": ["sched2"],
                "vip": "external",
                "check": {"kind": "http", "method": "GET", "path": "/health", "codes": ["200-399"]}
                | timing
                | {"interval_s": 2.0},
                "destinations": {
                    "rs1": {"address": "10.0.0.11", "port": 80, "weight": 1, "method": "route"},
                    "rs2": {
                        "address": "fd00::12",
                        "port": 80,
                        "weight": 0,
                        "method": "tunnel",
                        "upper_threshold": 100,
                        "lower_threshold": 80,
                        "tunnel": {"type": "gue", "port": 6080},
                        "tier": "backup",
                        "check": {"kind": "none"} | timing,
                        "drain_s": 30.0,
                    },
                },
            }
        },
    }


def test_the_shortest_documents_mean_the_defaults() -> None:
    assert decode_service("web", {"key": "tcp/10.0.0.1:80"}) == Service("web", ServiceKey.parse("tcp/10.0.0.1:80"))
    assert decode_check({"kind": "tcp"}) == CheckSpec()
    assert import_intent('{"schema": 1}') == Intent()
    assert decode_ranges(["fd00::/64", "10.0.0.0/24"]) == ("fd00::/64", "10.0.0.0/24")
    flags = decode_service("w", {"key": "fwmark/1", "scheduler": "mh", "flags": ["sched1", "sched2"]}).flags
    assert flags == ServiceFlags.SH_FALLBACK | ServiceFlags.SH_PORT


SCHEMA = jsonschema.Draft202012Validator(INTENT.schema, format_checker=jsonschema.FormatChecker())
WEB = ("services", "web")
WRONG: list[tuple[tuple[str, ...], Any]] = [
    (("schema",), True), (("x",), 1), (("timeouts", "tcp_s"), -1), (("ranges",), "10.0.0.0/8"),
    (("services", "-"), DOCUMENT),
    ((*WEB, "scheduler"), "a b"), ((*WEB, "flags"), ["one"]), ((*WEB, "netmask"), 0), ((*WEB, "vip"), True),
    ((*WEB, "check"), {"kind": "tcp", "path": "/"}), ((*WEB, "check"), {"kind": "dns"}), ((*WEB, "check"), {}),
    ((*WEB, "destinations", "d1", "address"), "10.0.0"), ((*WEB, "destinations", "d1", "port"), 65536),
    ((*WEB, "destinations", "d1", "tunnel"), {"port": 1}), ((*WEB, "destinations", "d1", "tier"), "third"),
]  # fmt: skip


@given(intents.map(encode_intent) | intents.map(encode_intent).flatmap(spoilt))
def test_what_is_read_is_what_the_schema_says(document: Any) -> None:
    try:
        decode_intent(document)
    except Invalid:
        return
    SCHEMA.validate(document)


def test_the_schema_refuses_what_is_refused() -> None:
    good = {"schema": 1, "services": {"web": DOCUMENT}}
    assert SCHEMA.is_valid(good)
    for path, value in WRONG:
        document = copy.deepcopy(good)
        place: Any = document
        for step in path[:-1]:
            place = place.setdefault(step, {})
        place[path[-1]] = value
        assert not SCHEMA.is_valid(document), path
        with pytest.raises(Invalid):
            decode_intent(document)
