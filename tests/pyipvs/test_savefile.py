"""The text of ipvsadm --save and --restore. That ipvsadm agrees is in tests/kernel/test_savefile.py."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyipvs import Destination, Family, ForwardingMethod, Protocol, Service, ServiceFlags, ServiceKey, Tunnel, TunnelType
from pyipvs.model import check_pair
from pyipvs.savefile import SaveFileError, parse, render
from tests.pyipvs.strategies import allowed, destinations, services

ROUTE, TUNNEL, NAT = ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL, ForwardingMethod.NAT
BYPASS, LOCAL = ForwardingMethod.BYPASS, ForwardingMethod.LOCAL
WEB, WEB6 = ServiceKey.parse("10.0.0.1:80"), ServiceKey.parse("[fd00::1]:80")
MARK, MARK6 = ServiceKey.fwmark(7), ServiceKey.fwmark(7, Family.INET6)
SH, SCHED3 = ServiceFlags.SH_FALLBACK | ServiceFlags.SH_PORT, ServiceFlags.SCHED3

SERVICE_LINES = [
    ("-A -t 10.0.0.1:80", Service(WEB)),
    ("-At10.0.0.1:80", Service(WEB)),
    ("-A -t=10.0.0.1:80 -srr", Service(WEB, "rr")),
    ("ipvsadm -A -t 10.0.0.1:http -s rr\r", Service(WEB, "rr")),
    ("--add-service --tcp-service 10.0.0.1:80 --scheduler=rr  # the shop", Service(WEB, "rr")),
    ("-A -t '10.0.0.1:80' -s \"rr\"", Service(WEB, "rr")),
    ("-A -u 10.0.0.1:domain -o", Service(ServiceKey.parse("udp/10.0.0.1:53"), flags=ServiceFlags.ONE_PACKET)),
    ("-A --udp-service=10.0.0.1:53 --ops", Service(ServiceKey.parse("udp/10.0.0.1:53"), flags=ServiceFlags.ONE_PACKET)),
    ("-A --sctp-service [fd00::1]:9", Service(ServiceKey.parse("sctp/[fd00::1]:9"))),
    ("-A -t [FD00:0::1]:80", Service(WEB6)),
    ("-A -t 10.0.0.2 -p", Service(ServiceKey.parse("10.0.0.2:0"), persistence_s=360)),
    ("-A -t fd00::1 -p", Service(ServiceKey.parse("[fd00::1]:0"), persistence_s=360)),
    ("-A -p 60 -t 10.0.0.1:80", Service(WEB, persistence_s=60)),
    ("-A -t 10.0.0.1:80 -p60 -M 255.255.240.0", Service(WEB, persistence_s=60, netmask=20)),
    ("-A -p -t 10.0.0.1:80 --netmask=255.255.255.255", Service(WEB, persistence_s=360)),
    ("-A --persistent=60 --netmask 64 -t [fd00::1]:80", Service(WEB6, persistence_s=60, netmask=64)),
    ("-A -op9 -f 7", Service(MARK, flags=ServiceFlags.ONE_PACKET, persistence_s=9)),
    ("-A --fwmark-service 7 -6", Service(MARK6)),
    ("-A -6 -f 7", Service(MARK6)),
    ("-A -f 4294967295 --ipv6", Service(ServiceKey.fwmark(2**32 - 1, Family.INET6))),
    ("-A -f -1 -6", Service(ServiceKey.fwmark(2**32 - 1, Family.INET6))),  # what ipvsadm -S makes of it
    ("-A -f -2147483648", Service(ServiceKey.fwmark(2**31))),
    ("-A -f 7 --pe sip", Service(MARK, persistence_engine="sip")),
    ("-A -f 7 --pe-name=sip", Service(MARK, persistence_engine="sip")),
    ("-A -f 7 -b flag-1,flag-2,flag-3", Service(MARK, flags=SH | SCHED3)),
    ("-A -f 7 -b sh-fallback,sh-port -s sh", Service(MARK, "sh", SH)),
    ("-A -f 7 -s mh --sched-flags=mh-fallback,mh-port", Service(MARK, "mh", SH)),
]


@pytest.mark.parametrize(("line", "service"), SERVICE_LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_service_line_is_read(line: str, service: Service) -> None:
    assert parse(line) == [(service, [])]


GUE, GRE, IPIP = TunnelType.GUE, TunnelType.GRE, TunnelType.IPIP
DESTINATION_LINES = [
    ("-a -t 10.0.0.1:80 -r 10.0.0.2", Destination("10.0.0.2", 80, 1, ROUTE)),
    ("-at10.0.0.1:80 -r10.0.0.2:80 -gw3", Destination("10.0.0.2", 80, 3, ROUTE)),
    ("-a -t 10.0.0.1:http -r 10.0.0.2:http --gatewaying", Destination("10.0.0.2", 80, 1, ROUTE)),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2:8080 -g", Destination("10.0.0.2", 80, 1, ROUTE)),  # as ipvsadm does
    ("-a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m", Destination("10.0.0.2", 8080)),
    ("-a -t 10.0.0.1:80 -m -r 10.0.0.2", Destination("10.0.0.2", 80)),
    ("--add-server --tcp-service 10.0.0.1:80 --real-server=10.0.0.2 --masquerading", Destination("10.0.0.2", 80)),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2 -w 0 -x 9 -y 5 -m", Destination("10.0.0.2", 80, 0, NAT, 9, 5)),
    (
        "-a -t 10.0.0.1:80 -r 10.0.0.2 --weight=2 --u-threshold=9 --l-threshold 5",
        Destination("10.0.0.2", 80, 2, ROUTE, 9, 5),
    ),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2 -i", Destination("10.0.0.2", 80, 1, TUNNEL)),
    ("-a -t 10.0.0.1:80 -r [fd00::2]:80 --ipip --tun-type ipip", Destination("fd00::2", 80, 1, TUNNEL)),
    ("-a -t 10.0.0.1:80 -r fd00::2 --ipip", Destination("fd00::2", 80, 1, TUNNEL)),
    (
        "-a -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-type gue --tun-port 6080 --tun-nocsum",
        Destination("10.0.0.2", 80, 1, TUNNEL, tunnel=Tunnel(GUE, 6080)),
    ),
    (
        "-a -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-type=gue --tun-port=6080 --tun-remcsum",
        Destination("10.0.0.2", 80, 1, TUNNEL, tunnel=Tunnel(GUE, 6080, 2)),
    ),
    (
        "-a -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-type gre --tun-csum",
        Destination("10.0.0.2", 80, 1, TUNNEL, tunnel=Tunnel(GRE, 0, 1)),
    ),
]


@pytest.mark.parametrize(("line", "destination"), DESTINATION_LINES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_destination_line_is_read(line: str, destination: Destination) -> None:
    assert parse(f"-A -t 10.0.0.1:80\n{line}") == [(Service(WEB), [destination])]


def test_a_destination_of_a_mark_keeps_its_port_and_has_none_by_default() -> None:
    text = "-A -f 7\n-A -f 7 -6\n-a -f 7 -r 10.0.0.2\n-a -f 7 -r 10.0.0.2:80\n-a -f 7 -6 -r [fd00::2]:http"
    ports = [[destination.port for destination in destinations] for _, destinations in parse(text)]
    assert ports == [[0, 80], [80]]


def test_services_and_destinations_stay_in_the_order_of_the_text() -> None:
    text = """# saved by hand, don't edit
        -A -u 10.0.0.9:53

        -A -t 10.0.0.1:80
        -a -u 10.0.0.9:53 -r 10.0.0.3 -m
        -a -t 10.0.0.1:80 -r 10.0.0.5 -m   # the same server
        -a -u 10.0.0.9:53 -r 10.0.0.2 -m"""
    read = [(str(service.key), [str(row) for row in destinations]) for service, destinations in parse(text)]
    assert read == [("udp/10.0.0.9:53", ["10.0.0.3:53", "10.0.0.2:53"]), ("tcp/10.0.0.1:80", ["10.0.0.5:80"])]
    assert parse("") == parse("\n \n# nothing") == []


A, D = "-A -t 10.0.0.1:80", "-a -t 10.0.0.1:80 -r 10.0.0.2"
ERRORS = [
    (f"{A} -q", "-q is not in a saved table"),
    (f"{A} --schedul rr", "--schedul is not in a saved table"),
    (f"{A} -n", "-n is not in a saved table"),
    (f"{A} -o=1", "-= is not in a saved table"),
    ("-A-ops -f 7", "-- is not in a saved table"),
    (f"{A} --scheduler==rr", "scheduler '=rr' must be"),
    (f"{A} --ops=1", "--ops takes no value"),
    (f"{A} rr", "'rr' is no option and belongs to none"),
    (f"{A} -", "'-' is no option"),
    (f"{A} -- rr", "-- is not in a saved table"),
    (f"{A} -s", "-s needs a value"),
    (f"{A} -s 'rr", "No closing quotation"),
    ("ipvsadm", "there is no command"),
    ("-t 10.0.0.1:80 -A", "-t comes before the command: begin the line with -A or -a"),
    *(
        (f"{word} -t 10.0.0.1:80", "is not in a saved table, only -A and -a")
        for word in ("-E", "--delete-service", "-C", "-d")
    ),
    ("--set 1 2 3", "--set is not in a saved table, only -A and -a"),
    (f"{A} -a", "-a is a second command option"),
    ("-A -s rr", "the service is missing: add -t, -u, --sctp-service or -f"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2", "tcp/10.0.0.1:80 is not there yet: its -A line must come first"),
    (f"{A}\n-a -t 10.0.0.1:80 -m", "the real server is missing: add -r"),
    (f"{A} -u 10.0.0.1:80", "-u is a second service option"),
    (f"{A} -s rr -s rr", "-s is a second scheduler option"),
    (f"{A}\n{D} -g -m", "-m is a second method option"),
    (f"{A} -r 10.0.0.2", "-r belongs to -a lines"),
    (f"{A}\n{D} -s rr", "-s belongs to -A lines"),
    (f"{A}\n{A} -s rr", "service tcp/10.0.0.1:80 is there already"),
    (f"{A}\n{D}\n{D}:80 -w 3", "service tcp/10.0.0.1:80 has destination 10.0.0.2:80 already"),
    ("-A -t shop.example.com:80", "'shop.example.com' is not an IPv4 or IPv6 address.*`ipvsadm -Sn`"),
    ("-A -t [shop]:80", "'shop' is not an IPv4 or IPv6 address.*`ipvsadm -Sn`"),
    (f"{A}\n-a -t 10.0.0.1:80 -r web1", "'web1' is not an IPv4 or IPv6 address.*`ipvsadm -Sn`"),
    ("-A -t 80", "'80' is not an IPv4 or IPv6 address"),
    ("-A -t [fd00::1]80", "80' is not an IPv4 or IPv6 address"),
    ("-A -p -t [fd00::1]", "' is not an IPv4 or IPv6 address"),  # nor does ipvsadm take it
    ("-A -t 10.0.0.1:nonsuch", "port 'nonsuch' is no number and no tcp service in /etc/services.*`ipvsadm -Sn`"),
    ("-A -t 10.0.0.1:", "port '' is no number"),
    ("-A -t 10.0.0.1:65536", "port 65536 must be a whole number from 0 to 65535"),
    ("-A -t 10.0.0.1:²", "port '²' must be a whole number"),
    ("-A -t 10.0.0.1", "port 0 .* needs persistence_s"),
    ("-A -t 10.0.0.1:80 -6", "-6 is for -f only"),
    ("-A -f 0", "firewall mark 0 must be"),
    ("-A -f -2147483649", "firewall mark '-2147483649' must be"),
    ("-A -f web", "firewall mark 'web' must be a whole number"),
    (f"{A} -s no.such", "scheduler 'no.such' must be"),
    (f"{A} --pe=", "persistence_engine '' must be"),
    (f"{A} -p 0", "-p must be at least 1 second"),
    (f"{A} -p -5", "-5 is not in a saved table"),
    (f"{A} -p 2147484", "persistence_s 2147484 must be a whole number from 0 to 2147483"),
    (f"{A} -p {'9' * 5000}", "persistent '9+' must be a whole number"),
    (f"{A} -M 24", "netmask '24' must be like 255.255.255.0"),
    (f"{A} -M 255.0.255.0", "netmask '255.0.255.0' must be like"),
    (f"{A} -M 0.0.0.0", "netmask .* 0 must be"),
    ("-A -t [fd00::1]:80 -M 129", "netmask .* 129 must be"),
    ("-A -t [fd00::1]:80 -M ffff::", "netmask .* must be a whole number"),
    (f"{A} -b flag-4", "scheduler flag 'flag-4' must be one of flag-1, "),
    (f"{A} -b sh-port", "scheduler flag sh-port is of scheduler sh, not wlc"),
    (f"{A} -s sh -b mh-port", "scheduler flag mh-port is of scheduler mh, not sh"),
    (f"{A}\n{D} -w 2147483648", "weight 2147483648 must be"),
    (f"{A}\n{D} -w -1", "weight '-1' must be a whole number"),
    (f"{A}\n{D} -x 5 -y 6", "lower_threshold 6 must be a whole number from 0 to 5"),
    (f"{A}\n{D} -m --tun-type gre", "tunnel settings are for method tunnel, not nat"),
    (f"{A}\n{D} -i --tun-type vxlan", "tunnel type 'vxlan' must be one of ipip, gue, gre"),
    (f"{A}\n{D} -i --tun-type gue", "gue needs a tunnel port"),
    (f"{A}\n{D} -i --tun-nocsum --tun-csum", "--tun-nocsum contradicts --tun-csum"),
    (f"{A}\n-a -t 10.0.0.1:80 -r [fd00::2]:80 -m", "another family"),
    (f"{A}\n-a -t 10.0.0.1:80 -r 224.0.0.1", "not the address of one host"),
]


@pytest.mark.parametrize(("text", "reason"), ERRORS, ids=lambda value: value[:60])
def test_what_cannot_be_restored_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(SaveFileError, match=f"(?s)^line [0-9]+: .*{reason}") as raised:
        parse(f"{text}\n")
    error = raised.value
    *_, last = text.split("\n")
    assert (error.line_number, error.line) == (text.count("\n") + 1, last)
    assert repr(last) in str(error)


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(SaveFileError(3, "-q", "unknown")))
    assert (str(error), error.line_number) == ("line 3: unknown: '-q'", 3)


RENDERED = [  # the first ones are what ipvsadm prints (test_ipvsadm_saves_the_table_that_was_made)
    (Service(WEB, "rr"), "-A -t 10.0.0.1:80 -s rr"),
    (Service(ServiceKey.parse("sctp/10.0.0.1:9"), "wrr"), "-A --sctp-service 10.0.0.1:9 -s wrr"),
    (Service(ServiceKey.parse("udp/10.0.0.1:53"), flags=ServiceFlags.ONE_PACKET), "-A -u 10.0.0.1:53 -s wlc -o"),
    (Service(MARK, "mh"), "-A -f 7 -s mh"),
    (Service(MARK6, "rr"), "-A -f 7 -6 -s rr"),
    (Service(WEB, "lc", persistence_s=300, netmask=24), "-A -t 10.0.0.1:80 -s lc -p 300 -M 255.255.255.0"),
    (Service(WEB, "lc", persistence_s=300, netmask=1), "-A -t 10.0.0.1:80 -s lc -p 300 -M 128.0.0.0"),
    (Service(WEB6, "lc", persistence_s=60, netmask=64), "-A -t [fd00::1]:80 -s lc -p 60 -M 64"),
    (Service(WEB6, "lc", persistence_s=60), "-A -t [fd00::1]:80 -s lc -p 60"),
    (Service(WEB, netmask=24), "-A -t 10.0.0.1:80 -s wlc"),
    (Service(WEB6, "sh", SH), "-A -t [fd00::1]:80 -s sh -b sh-fallback,sh-port"),
    (Service(WEB, "rr", SH | SCHED3), "-A -t 10.0.0.1:80 -s rr -b flag-1,flag-2,flag-3"),
    (Service(MARK, "mh", SH, 9, None, "sip"), "-A -f 7 -s mh -p 9 --pe sip -b mh-fallback,mh-port"),
    (Service(MARK, "sh", SCHED3), "-A -f 7 -s sh -b flag-3"),  # ipvsadm: "-b " and no value
    (Service(ServiceKey.fwmark(2**32 - 1), "rr"), "-A -f 4294967295 -s rr"),  # ipvsadm: -1
]


@pytest.mark.parametrize(("service", "line"), RENDERED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_service_is_written_as_ipvsadm_does(service: Service, line: str) -> None:
    assert render([(service, [])]) == f"{line}\n"


RENDERED_DESTINATIONS = [
    (Destination("10.0.0.2", 8080, 3), "10.0.0.2:8080 -m -w 3"),
    (Destination("10.0.0.2", 80, 0, ROUTE), "10.0.0.2:80 -g -w 0"),
    (Destination("10.0.0.2", 80, 1, LOCAL), "10.0.0.2:80 -g -w 1"),
    (Destination("fd00::2", 80, 1, TUNNEL), "[fd00::2]:80 -i -w 1 --tun-type ipip"),
    (Destination("10.0.0.2", 80, 1, TUNNEL, tunnel=Tunnel(IPIP, 0, 1)), "10.0.0.2:80 -i -w 1 --tun-type ipip"),
    (
        Destination("10.0.0.2", 80, 1, TUNNEL, tunnel=Tunnel(GUE, 6080)),
        "10.0.0.2:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum",
    ),
    (
        Destination("10.0.0.2", 80, 1, TUNNEL, 9, 5, tunnel=Tunnel(GRE, 0, 1)),
        "10.0.0.2:80 -i -w 1 -x 9 -y 5 --tun-type gre --tun-csum",
    ),
    (
        Destination("10.0.0.2", 80, 1, TUNNEL, tunnel=Tunnel(GUE, 6080, 3)),
        "10.0.0.2:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum --tun-remcsum",
    ),
    (Destination("10.0.0.2", 80, upper_threshold=9), "10.0.0.2:80 -m -w 1 -x 9"),  # ipvsadm leaves thresholds out
]


@pytest.mark.parametrize(("destination", "rest"), RENDERED_DESTINATIONS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_destination_is_written_as_ipvsadm_does(destination: Destination, rest: str) -> None:
    assert render([(Service(WEB), [destination])]) == f"-A -t 10.0.0.1:80 -s wlc\n-a -t 10.0.0.1:80 -r {rest}\n"


def test_what_ipvsadm_has_no_word_for_is_refused_or_left_out() -> None:
    with pytest.raises(ValueError, match="no option for method bypass"):
        render([(Service(WEB), [Destination("10.0.0.2", 80, 1, BYPASS)])])
    key = ServiceKey(Protocol.TCP, "10.0.0.1", 80)
    object.__setattr__(key, "protocol", Protocol.seen(99))  # as pyipvs.wire reads what it does not know
    with pytest.raises(ValueError, match="no option for protocol 99"):
        render([(Service(key), [])])
    tunnel = Tunnel()
    object.__setattr__(tunnel, "type", TunnelType.seen(9))
    line = render([(Service(WEB), [Destination("10.0.0.2", 80, 1, TUNNEL, tunnel=tunnel)])]).splitlines()[1]
    assert line == "-a -t 10.0.0.1:80 -r 10.0.0.2:80 -i -w 1"


def test_lines_are_sorted_by_number() -> None:
    rows = [Destination("10.0.0.10", 80), Destination("10.0.0.9", 81), Destination("10.0.0.9", 80)]
    text = render([(Service(MARK), []), (Service(ServiceKey.parse("10.0.0.10:80")), []), (Service(WEB), rows)])
    assert [line.split()[2:5:2] for line in text.splitlines()] == [
        ["10.0.0.1:80", "wlc"],
        ["10.0.0.1:80", "10.0.0.9:80"],
        ["10.0.0.1:80", "10.0.0.9:81"],
        ["10.0.0.1:80", "10.0.0.10:80"],
        ["10.0.0.10:80", "wlc"],
        ["7", "wlc"],
    ]
    assert render([]) == ""


Table = list[tuple[Service, list[Destination]]]


def _saved(service: Service) -> Service:
    """Without what has no effect, which is not written."""
    return service if service.persistence_s else replace(service, netmask=None)


def _possible(key: ServiceKey, rows: Iterable[Destination]) -> list[Destination]:
    """Those that the service can have, each once, without what has no effect."""
    possible = {}
    for row in rows:
        if row.method is not NAT and key.mark is None:
            row = replace(row, port=key.port or 0)
        if row.tunnel is not None and row.tunnel.type is IPIP:
            row = replace(row, tunnel=Tunnel())
        try:
            check_pair(key, row)
        except ValueError:
            continue
        possible[row.key] = row
    return list(possible.values())


SCHEDULED = st.builds(
    lambda service, scheduler, flags: replace(
        service, scheduler=scheduler or service.scheduler, flags=allowed(service.key, flags)
    ),
    services(),
    st.sampled_from(["", "sh", "mh", "rr"]),
    st.integers(0, 15).map(lambda bits: ServiceFlags(bits << 2)),
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    chosen = draw(st.lists(SCHEDULED, unique_by=lambda service: service.key, max_size=4))
    rows = st.lists(destinations(), max_size=4)
    return [(_saved(service), _possible(service.key, draw(rows))) for service in chosen]


@given(tables(), st.randoms(use_true_random=False))
def test_what_is_written_is_read_back_and_does_not_depend_on_order(table: Table, random: Random) -> None:
    text = render(table)
    read = parse(text)
    as_sets = [{service.key: (service, {row.key: row for row in rows}) for service, rows in t} for t in (table, read)]
    assert as_sets[0] == as_sets[1]
    shuffled = [(service, list(rows)) for service, rows in table]
    random.shuffle(shuffled)
    for _, rows in shuffled:
        random.shuffle(rows)
    assert render(shuffled) == render(read) == text


WORDS = st.sampled_from(
    [word for line, _ in [*SERVICE_LINES, *DESTINATION_LINES] for word in line.split()]
    + ["#", "'", "\\", "=", "--", "-C", "\n", "\n-A", "\n-a"]
)


@given(st.text() | st.lists(WORDS | st.text(max_size=4), max_size=30).map(" ".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        table = parse(text)
    except SaveFileError as error:
        assert error.line == text.split("\n")[error.line_number - 1].strip()
    else:
        assert render(parse(render(table))) == render(table)
