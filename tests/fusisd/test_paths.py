"""Path checks: who is asked what through the VIP, what it means, and which mark stands for which path."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd.config import parse
from fusisd.errors import Invalid, StartupError
from fusisd.inbox import Beginning, Committed, PathsNoted, ProbeChanged
from fusisd.model import CheckKind, CheckSpec, CheckState, CheckTarget, Destination, Health, HostSeen, Intent, Path, Service
from fusisd.notes import paths_of
from fusisd.paths import INTERVAL_S, both, path_check, path_of, text_of
from pyipvs import Family, ForwardingMethod, ServiceKey, Tunnel, TunnelType
from tests.fusisd.world import NAT, ROUTE, TUNNEL, UP, VIP, WEB_KEY, Daemon, at, down, web

TCP, DNS = CheckSpec(), CheckSpec(CheckKind.DNS, name="example.")
FIRST, LAST = 0x46550000, 0x4655FFFF
UNKNOWN = Health()

NOT_ASKED: list[tuple[str, str, dict[str, Any], CheckSpec]] = [
    ("by NAT the server's own address is the path", f"tcp/{VIP}:80", {"method": NAT}, TCP),
    ("no check", f"tcp/{VIP}:80", {}, CheckSpec(CheckKind.NONE)),
    ("not wanted", f"tcp/{VIP}:80", {}, CheckSpec(path_check=False)),
    ("no VIP", "fwmark/7", {}, TCP),
    ("another family's tunnel", "tcp/[fd00::1]:80", {"method": TUNNEL}, TCP),
    ("SCTP", f"sctp/{VIP}:80", {}, TCP),
    ("UDP, asked by TCP", f"udp/{VIP}:80", {}, TCP),
    ("UDP, where silence passes", f"udp/{VIP}:80", {}, CheckSpec(CheckKind.UDP, send="00")),
    ("UDP, asked at another port", f"udp/{VIP}:80", {}, CheckSpec(CheckKind.DNS, 5353, name="example.")),
]


@pytest.mark.parametrize(("why", "key", "settings", "spec"), NOT_ASKED, ids=[row[0] for row in NOT_ASKED])
def test_who_is_not_asked_through_the_vip(why: str, key: str, settings: dict[str, Any], spec: CheckSpec) -> None:
    assert path_check(ServiceKey.parse(key), at(1, method=settings.get("method", ROUTE)), spec) is None, why


def test_a_tcp_service_is_asked_by_connect_at_its_own_port_whatever_its_check_asks() -> None:
    found = path_check(WEB_KEY, at(1), CheckSpec(CheckKind.HTTP, 8081, path="/health"))
    assert found is not None
    assert (str(found), found.spec.kind, found.spec.timing.interval_s) == (
        "10.0.0.1:80 at 10.0.0.11 by route", CheckKind.TCP, INTERVAL_S
    )  # fmt: skip


def test_a_udp_service_is_asked_what_its_check_asks() -> None:
    found = path_check(ServiceKey.parse(f"udp/{VIP}:53"), at(1, port=53), DNS)
    assert found is not None
    assert (found.address, found.port, found.spec.kind, found.spec.name) == (VIP, 53, CheckKind.DNS, "example.")


def test_one_path_serves_all_vips_and_ports_and_each_tunnel_is_another() -> None:
    def path(key: str, port: int = 80, **settings: Any) -> Path | None:
        found = path_check(ServiceKey.parse(key), at(1, port=port, **settings), TCP)
        return None if found is None else found.path

    assert path("tcp/10.0.0.1:80") == path("tcp/10.0.0.2:443", 443) is not None
    tunnels = [None, Tunnel(TunnelType.GRE), Tunnel(TunnelType.GUE, 6080)]
    found = {path("tcp/10.0.0.1:80", method=TUNNEL, tunnel=tunnel) for tunnel in (*tunnels, Tunnel())}
    assert len(found) == 3, "none means ipip"


THROUGH = CheckTarget(VIP, 80, path=Path("10.0.0.11", ROUTE))
AT = CheckTarget("10.0.0.11", 80)
MEANT = [
    (UP, UP, CheckState.UP),
    (UP, UNKNOWN, CheckState.UNKNOWN),
    (UP, down(), CheckState.DOWN),
    (UNKNOWN, UP, CheckState.UNKNOWN),
    (UNKNOWN, UNKNOWN, CheckState.UNKNOWN),
    (UNKNOWN, down(), CheckState.DOWN),
    (down(), UP, CheckState.DOWN),
    (down(), UNKNOWN, CheckState.DOWN),
    (down(), down(), CheckState.DOWN),
]


@pytest.mark.parametrize(("own", "path", "state"), MEANT)
def test_up_when_both_are_and_down_when_one_is(own: Health, path: Health, state: CheckState) -> None:
    assert both(own, path, THROUGH, AT).state is state


def test_the_reason_names_the_path_and_what_to_look_at() -> None:
    told = both(UP, Health(CheckState.DOWN, 7.0, "no answer within 0.5 s"), THROUGH, AT)
    assert (told.since_s, told.reason) == (
        7.0,
        "path check through the VIP 10.0.0.1:80 by route: no answer within 0.5 s although 10.0.0.11:80 itself answers: is"
        " the VIP on its loopback?",
    )
    tunnel = CheckTarget(VIP, 80, path=Path("10.0.0.11", TUNNEL, Tunnel()))
    assert "tunnel device" in both(UP, down(), tunnel, AT).reason
    assert "itself answers" not in both(UNKNOWN, down(), tunnel, AT).reason


tunnels = st.sampled_from([Tunnel(), Tunnel(TunnelType.GRE, flags=1), Tunnel(TunnelType.GUE, 6080, 3)])
paths = st.builds(Path, st.sampled_from(["10.0.0.1", "fd00::1"]), st.just(ForwardingMethod.TUNNEL), tunnels) | st.builds(
    Path, st.sampled_from(["10.0.0.1", "fd00::1"]), st.just(ForwardingMethod.ROUTE)
)


@given(paths)
def test_a_path_is_noted_and_read_back(path: Path) -> None:
    assert path_of(text_of(path)) == path


@pytest.mark.parametrize("text", ["", "7", "[]", '["10.0.0.1"]', '["x", "route"]', '["10.0.0.1", "tunnel", "vxlan", 0, 0]'])
def test_a_note_that_cannot_be_read_stands_for_no_path(text: str) -> None:
    with pytest.raises(Invalid):
        path_of(text)
    assert paths_of({"fwmark/7": text}) == {}


# Marks, in the daemon


def two(**settings: Any) -> Intent:
    destinations: dict[str, Destination] = {row.name: row for row in (at(1), at(2))}
    services: dict[str, Service] = {"web": web(check=TCP, destinations=destinations, **settings)}
    return Intent(services, 1)


def serving(intent: Intent | None = None) -> Daemon:
    daemon = Daemon()
    return told(daemon, intent or two())


def told(daemon: Daemon, intent: Intent) -> Daemon:
    keys = frozenset(service.key for service in intent.services.values())
    daemon.turn(Committed(intent, keys))
    own = [check for check in daemon.checks.wanted if check.path is None]
    daemon.turn(*(ProbeChanged(check, UP) for check in own))
    return daemon


def marks(daemon: Daemon) -> dict[int, list[str]]:
    """The hidden services in the kernel: mark to destinations."""
    table = daemon.ipvs.snapshot()
    found = {key.mark: [f"{d} {d.method}" for d in row.destinations] for key, row in table.items()}
    return {mark: rows for mark, rows in found.items() if mark is not None}


def through(daemon: Daemon, number: int) -> CheckTarget:
    wanted = daemon.checks.wanted
    (found,) = (check for check in wanted if check.path is not None and check.path.address == f"10.0.0.{10 + number}")
    return found


def test_each_server_has_a_hidden_service_of_its_own() -> None:
    daemon = serving()
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
    assert marks(daemon) == {FIRST: ["10.0.0.11:0 route"], FIRST + 1: ["10.0.0.12:0 route"]}
    assert [view.name for view in daemon.control.snapshot.services] == ["web"]
    assert daemon.control.snapshot.status["path_checks"] == {"services": 2, "not_checked": {}}
    assert daemon.control.snapshot.status["problems"] == []
    assert not daemon.host.wanted.foreign


def test_a_server_that_fails_through_the_vip_is_taken_out_and_comes_back() -> None:
    daemon = serving()
    bad = through(daemon, 1)
    daemon.turn(ProbeChanged(bad, down(daemon.clock())))
    assert daemon.weights() == {"10.0.0.11": 0, "10.0.0.12": 1}
    (view,) = daemon.control.snapshot.services
    assert "path check through the VIP" in view.destinations[0].reason
    daemon.turn(ProbeChanged(bad, UP))
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_who_does_not_answer_at_his_own_address_is_not_asked_through_the_vip_and_at_once_when_he_does() -> None:
    daemon = serving()
    own = CheckTarget("10.0.0.11", 80)
    before = marks(daemon)
    daemon.turn(ProbeChanged(own, down(daemon.clock())))
    assert [check.path.address for check in daemon.checks.wanted if check.path] == ["10.0.0.12"]
    assert marks(daemon) == before, "the mark stays his"
    daemon.turn(ProbeChanged(own, UP))
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}, "the world's first answer through the VIP is good"


def test_the_marks_are_found_again_after_a_restart_and_nothing_is_done() -> None:
    daemon = serving()
    owned = frozenset({WEB_KEY})
    again = Daemon(Beginning(two(), owned, serf_expected=False, paths=daemon.paths), daemon.fake)
    for _ in range(3):
        again.turn()
    assert again.control.snapshot.status["ops"] == 0
    assert again.paths == daemon.paths, "none was chosen anew"
    assert through(again, 1) == through(daemon, 1)


def test_with_the_last_destination_its_hidden_service_goes_and_is_ours_no_more() -> None:
    daemon = serving()
    left: dict[str, Destination] = {"d2": at(2)}
    told(daemon, Intent({"web": web(check=TCP, destinations=left)}, 2))
    assert marks(daemon) == {FIRST + 1: ["10.0.0.12:0 route"]}
    assert daemon.released == [ServiceKey.fwmark(FIRST)]
    told(daemon, Intent({}, 3))
    assert marks(daemon) == {}
    assert daemon.control.owned == frozenset()


def test_a_mark_that_somebody_has_is_not_taken() -> None:
    daemon = Daemon()
    daemon.ipvs.add_service(ServiceKey.fwmark(FIRST))
    daemon.clock.now_s += 2
    daemon.turn()
    told(daemon, two())
    assert marks(daemon) == {FIRST: [], FIRST + 1: ["10.0.0.11:0 route"], FIRST + 2: ["10.0.0.12:0 route"]}


def test_a_mark_that_somebody_took_in_the_meantime_is_theirs_and_another_is_chosen() -> None:
    daemon = Daemon()
    daemon.turn()
    daemon.ipvs.add_service(ServiceKey.fwmark(FIRST), scheduler="wlc")
    told(daemon, two())
    daemon.turn()
    assert marks(daemon)[FIRST] == []
    assert sorted(str(row) for rows in marks(daemon).values() for row in rows) == ["10.0.0.11:0 route", "10.0.0.12:0 route"]
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_without_its_service_in_the_kernel_no_path_is_asked() -> None:
    """A marked probe would reach any server of the VIP, and pass."""
    daemon = Daemon()
    asked: list[Any] = []
    daemon.control._told = type(daemon.control._told)(daemon.released.extend, asked.append, asked.append, asked.append)
    told(daemon, two())
    assert all(check.path is None for check in daemon.checks.wanted)
    assert daemon.weights() == {}, "a new server waits for both"
    (rows,) = (row for row in asked if isinstance(row, dict))
    daemon.turn(PathsNoted(rows))
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_a_mark_that_cannot_be_noted_leaves_the_word_to_the_own_address_and_is_tried_again() -> None:
    daemon = Daemon()
    asked: list[Any] = []
    daemon.control._told = type(daemon.control._told)(daemon.released.extend, asked.append, asked.append, asked.append)
    told(daemon, two())
    (rows,) = (row for row in asked if isinstance(row, dict))
    daemon.turn(PathsNoted(rows, "disk full"))
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
    shown = daemon.control.snapshot.status["path_checks"]
    assert shown == {"services": 0, "not_checked": {f"10.0.0.{n} by route": "disk full" for n in (11, 12)}}
    daemon.clock.now_s += 6
    daemon.turn()
    assert [row for row in asked if isinstance(row, dict)] == [rows, rows]


def test_where_the_host_cannot_let_answers_in_the_own_address_decides() -> None:
    daemon = serving()
    bad = through(daemon, 1)
    daemon.turn(ProbeChanged(bad, down(daemon.clock())))
    wanted = daemon.host.wanted
    daemon.control.enter(HostSeen(wanted.vips, no_path=dict.fromkeys(wanted.paths, "accept_local is 0")))
    daemon.control.turn()
    daemon.control.turn()
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
    assert all(check.path is None for check in daemon.checks.wanted)


def test_no_more_marks_than_there_are() -> None:
    daemon = Daemon(Beginning(serf_expected=False, path_marks=range(5, 6)))
    told(daemon, two())
    assert marks(daemon) == {5: ["10.0.0.11:0 route"]}
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
    assert "--path-marks" in str(daemon.control.snapshot.status["path_checks"])


def test_what_a_lost_store_left_at_our_marks_is_left_alone_and_named_with_the_command() -> None:
    daemon = Daemon()
    left = [ServiceKey.fwmark(FIRST), ServiceKey.fwmark(FIRST + 1, Family.INET6)]
    for key in (*left, ServiceKey.fwmark(FIRST - 1)):
        daemon.ipvs.add_service(key, scheduler="rr")
    told(daemon, two())
    assert marks(daemon).keys() == set(range(FIRST - 1, FIRST + 4)), "ours are at marks that nobody has"
    (warning,) = daemon.control.snapshot.status["warnings"]  # type: ignore[misc]
    assert warning.startswith("2 services have a firewall mark of those for path checks")
    assert warning.endswith(f"ipvsadm -D -f {FIRST}; ipvsadm -D -f {FIRST + 1} -6")
    for key in left:
        daemon.ipvs.delete_service(key)
    daemon.control.look()
    daemon.turn()
    assert daemon.control.snapshot.status["warnings"] == []


def test_nothing_of_it_without_route_or_tunnel() -> None:
    row = at(1, method=NAT)
    daemon = serving(Intent({"web": web(check=TCP, destinations={"d1": row})}, 1))
    assert (marks(daemon), daemon.paths, daemon.host.wanted.paths) == ({}, {}, frozenset())


def test_the_range_of_marks_is_asked_for_on_the_command_line() -> None:
    def asked(*words: str) -> range:
        return parse(["--dry-run", *words]).path_marks

    assert asked() == range(FIRST, LAST + 1)
    assert asked("--path-marks", "0x10-31") == range(16, 32)
    for wrong in ("7", "0-5", "9-8", "1-4294967296", "a-b", "1-2-3"):
        with pytest.raises(StartupError, match="--path-marks"):
            asked("--path-marks", wrong)
