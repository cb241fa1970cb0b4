"""Every number of const.py and model.py is the kernel header's, and no attribute of the header is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from pyipvs import const, model

HEADER = Path("/usr/include/linux/ip_vs.h")
pytestmark = pytest.mark.skipif(not HEADER.exists(), reason="<linux/ip_vs.h>: apt-get install linux-libc-dev")

ENUMS: list[tuple[str, type[IntEnum]]] = [
    ("IPVS_CMD_", const.Command),
    ("IPVS_CMD_ATTR_", const.CmdAttr),
    ("IPVS_SVC_ATTR_", const.SvcAttr),
    ("IPVS_DEST_ATTR_", const.DestAttr),
    ("IPVS_STATS_ATTR_", const.StatsAttr),
    ("IPVS_INFO_ATTR_", const.InfoAttr),
    ("IP_VS_CONN_F_TUNNEL_TYPE_", model.TunnelType),
]


def _enumerators(text: str) -> Iterator[tuple[str, int]]:
    """The names and values of every enum in C source."""
    for body in re.findall(r"enum\s*\{(.*?)\}", re.sub(r"/\*.*?\*/", "", text, flags=re.S), re.S):
        value = -1
        for name, given in re.findall(r"(\w+)\s*(?:=\s*(\w+))?\s*(?:,|$)", body):
            value = int(given, 0) if given else value + 1
            yield name, value


def _header(prefix: str) -> dict[str, int]:
    names = {name: value for name, value in _enumerators(HEADER.read_text()) if name.startswith(prefix)}
    inner = [other for other, _ in ENUMS if other != prefix and other.startswith(prefix)]
    return {
        name.removeprefix(prefix): value
        for name, value in names.items()
        if not name.endswith(("_UNSPEC", "_MAX")) and not any(name.startswith(other) for other in inner)
    }


def _define(name: str) -> int:
    found = re.search(rf"#define\s+{name}\s+\(?(\w+)", HEADER.read_text())
    assert found, name
    return int(found[1], 0)


@pytest.mark.parametrize(("prefix", "ours"), ENUMS, ids=lambda value: str(value))
def test_an_enum_is_the_headers_to_the_last_value(prefix: str, ours: type[IntEnum]) -> None:
    assert {member.name: member.value for member in ours} == _header(prefix)


@pytest.mark.parametrize("flag", const.SvcFlag, ids=lambda flag: flag.name)
def test_a_service_flag_is_the_headers(flag: const.SvcFlag) -> None:
    assert flag == _define(f"IP_VS_SVC_F_{flag.name}")


def test_the_flags_that_callers_set_are_the_headers() -> None:
    names = {"ONE_PACKET": "ONEPACKET", "SH_FALLBACK": "SCHED1", "SH_PORT": "SCHED2"}
    for name, flag in model.ServiceFlags.__members__.items():
        if flag:
            assert flag == _define(f"IP_VS_SVC_F_{names.get(name, name)}")


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("NAT", "MASQ"),
        ("LOCAL", "LOCALNODE"),
        ("TUNNEL", "TUNNEL"),
        ("ROUTE", "DROUTE"),
        ("BYPASS", "BYPASS"),
    ],
)
def test_a_forwarding_method_is_the_headers(method: str, name: str) -> None:
    assert model.ForwardingMethod[method] == _define(f"IP_VS_CONN_F_{name}")


def test_single_numbers_are_the_headers() -> None:
    assert _define("IPVS_GENL_VERSION") == const.GENL_VERSION
    assert _define("IP_VS_SCHEDNAME_MAXLEN") == _define("IP_VS_PENAME_MAXLEN") == const.NAME_MAX
    assert _define("IP_VS_CONN_F_FWD_MASK") == const.FWD_MASK
    assert f'#define IPVS_GENL_NAME\t\t"{const.GENL_NAME}"' in HEADER.read_text()
