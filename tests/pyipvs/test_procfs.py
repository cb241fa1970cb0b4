"""Texts as Linux 6.1 wrote them, then any text at all: it parses or raises DecodeError."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyipvs import DecodeError, IPVSError, ModuleMissing, PermissionDenied, Protocol
from pyipvs.procfs import Connection, CpuStatistics, TableProbe, connections, cpu_statistics, set_sysctl, sysctl, sysctls

CONNECTIONS = b"""\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A090002 96C0 0A010064 0050 0A01000B 0050 SYN_RECV         57
TCP fd00:0009:0000:0000:0000:0000:0000:0002 C23E fd00:0001:0000:0000:0000:0000:0000:0100 0050 \
fd00:0001:0000:0000:0000:0000:0000:0011 0050 SYN_RECV         56
UDP 0A090002 E3BF 0A010064 13C4 0A01000B 13C4 UDP             296
IP  0A090002 0000 00000009 0000 0A01000B 0000 NONE             58
UDP 0A090002 0000 0A010064 13C4 0A01000B 13C4 NONE             56 sip 843817637684230@998sdasdh09
"""
SYNCED = b"""\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires
TCP 0A090002 96C0 0A010064 0050 0A01000B 0050 SYN_RECV    LOCAL       56
TCP fd00:0009:0000:0000:0000:0000:0000:0002 C23E fd00:0001:0000:0000:0000:0000:0000:0100 0050 \
fd00:0001:0000:0000:0000:0000:0000:0011 0050 SYN_RECV    LOCAL       59
TCP 0A090002 AE76 0A010064 0050 0A01000B 0050 ESTABLISHED SYNC       178
"""
PER_CPU = b"""\
       Total Incoming Outgoing         Incoming         Outgoing
CPU    Conns  Packets  Packets            Bytes            Bytes
  0        4        A        0              317                0
  ~        4        9        0              2DB                0

     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
           0        1        0               38                0
"""
TABLE = b"""\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  [fd00:0001:0000:0000:0000:0000:0000:0100]:0050 rr\x20
  -> [fd00:0001:0000:0000:0000:0000:0000:0011]:0050      Masq    1      1          0        \x20
UDP  0A010064:0035 rr ops \x20
TCP  0A010064:0050 rr  persistent 30000 FFFFFFFF
  -> 0A01000B:0050      Masq    1      1          0        \x20
FWM  00000007 wlc\x20
"""


@pytest.fixture
def made(tmp_path: Path) -> Callable[[bytes], Path]:
    """A file with that text."""

    def make(text: bytes) -> Path:
        path = tmp_path / "text"
        path.write_bytes(text)
        return path

    return make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory like /proc/sys/net/ipv4/vs."""
    texts = {"conn_reuse_mode": "1\n", "drop_entry": "0\n", "sync_threshold": "3\t50\n", "est_cpulist": "0\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_connections(made: Callable[[bytes], Path]) -> None:
    web, web6, sip, mark, template = connections(made(CONNECTIONS))
    assert web == Connection(Protocol.TCP, "10.9.0.2", 38592, "10.1.0.100", 80, "10.1.0.11", 80, "SYN_RECV", 57)
    assert web6 == Connection(Protocol.TCP, "fd00:9::2", 49726, "fd00:1::100", 80, "fd00:1::11", 80, "SYN_RECV", 56)
    assert (sip.protocol, sip.state, sip.expires_s) == (Protocol.UDP, "UDP", 296)
    assert (mark.protocol, mark.virtual_address) == (0, "0.0.0.9")
    assert (template.persistence_engine, template.engine_data) == ("sip", "843817637684230@998sdasdh09")
    assert {one.origin for one in (web, web6, sip, mark, template)} == {None}


def test_connections_with_their_origin(made: Callable[[bytes], Path]) -> None:
    web, web6, synced = connections(made(SYNCED), synced=True)
    assert [web.origin, web6.origin, synced.origin] == ["local", "local", "sync"]
    assert (synced.state, synced.expires_s, synced.persistence_engine) == ("ESTABLISHED", 178, None)


def test_rare_lines(made: Callable[[bytes], Path]) -> None:
    heading = CONNECTIONS.splitlines(keepends=True)[0]
    group = b"fd00:0001:0000:0000:0000:0000:0000:0011"
    other, mixed, raw = connections(made(
        heading
        + b"IP_50 0A090002 0000 0A010064 0050 0A01000B 0050 NONE             58\n"
        + b"SCTP " + group + b" 0001 [" + group + b"] 0002 0A01000B 0003 COOKIE_WAIT       0\n"
        + b"UDP 0A090002 0000 0A010064 13C4 0A01000B 13C4 NONE             56 sip \xe9\x85 \xa0\r\n"
    ))  # fmt: skip
    assert (other.protocol, other.protocol.name) == (50, "50")
    assert (mixed.protocol, mixed.virtual_address, mixed.destination_address) == (132, "fd00:1::11", "10.1.0.11")
    assert raw.engine_data.encode("latin-1") == b"\xe9\x85 \xa0\r"


def test_connections_are_read_one_by_one_and_the_file_is_open_before_the_first(made: Callable[[bytes], Path]) -> None:
    path = made(CONNECTIONS + b"nonsense\n")
    rows = connections(path)
    path.unlink()
    assert [next(rows).protocol for _ in range(5)] == [6, 6, 17, 0, 17]
    with pytest.raises(DecodeError, match="nonsense"):
        next(rows)


@pytest.mark.parametrize("line", [
    b"", b"TCP 0A090002 96C0", b"XYZ 0A090002 96C0 0A010064 0050 0A01000B 0050 SYN_RECV         57",
    b"IP_ 0A090002 96C0 0A010064 0050 0A01000B 0050 SYN_RECV         57",
    b"TCP 0A09000 96C0 0A010064 0050 0A01000B 0050 SYN_RECV         57",
    b"TCP 0A090002 96C0 0A010064 0050 0A01000B 0050 SYN_RECV         -7",
    b"TCP 0A090002 96C0 " + b":" * 39 + b" 0050 0A01000B 0050 SYN_RECV         57",
])  # fmt: skip
def test_a_malformed_line_is_named(made: Callable[[bytes], Path], line: bytes) -> None:
    heading = CONNECTIONS.splitlines(keepends=True)[0]
    with pytest.raises(DecodeError, match="no line of") as caught:
        list(connections(made(heading + line + b"\n")))
    assert line.decode() in str(caught.value)


def test_another_file_is_no_connection_table(made: Callable[[bytes], Path]) -> None:
    for text in (b"", TABLE):
        with pytest.raises(DecodeError, match="heading"):
            connections(made(text))


def test_counters_per_cpu(made: Callable[[bytes], Path]) -> None:
    assert cpu_statistics(made(PER_CPU)) == [CpuStatistics(0, 4, 10, 0, 0x317, 0), CpuStatistics(None, 4, 9, 0, 0x2DB, 0)]


def test_the_number_of_a_cpu_is_hexadecimal_too(made: Callable[[bytes], Path]) -> None:
    assert cpu_statistics(made(PER_CPU.replace(b"  0 ", b" 1F ", 1)))[0].cpu == 31


@pytest.mark.parametrize("text", [
    b"", TABLE, PER_CPU[: PER_CPU.index(b"  ~")], PER_CPU.replace(b"317", b"3.7"), PER_CPU.replace(b"~", b"0"),
])  # fmt: skip
def test_malformed_counters(made: Callable[[bytes], Path], text: bytes) -> None:
    with pytest.raises(DecodeError):
        cpu_statistics(made(text))


def test_without_the_module(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for attempt in (connections, cpu_statistics, TableProbe, sysctls):
        with pytest.raises(ModuleMissing, match="modprobe ip_vs"):
            attempt(missing)  # type: ignore[operator]
    with pytest.raises(ModuleMissing):
        sysctl("drop_entry", missing)


def test_other_refusals_keep_their_errno(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    with pytest.raises(IPVSError) as caught:
        cpu_statistics(tmp_path)
    assert caught.value.errno == errno.EISDIR
    (root / "odd").mkdir()
    with pytest.raises(IPVSError, match="read sysctl odd"):
        sysctls(root)
    for code, words in ((errno.EROFS, "mounted read-only"), (errno.EACCES, "CAP_NET_ADMIN")):
        monkeypatch.setattr("os.open", lambda *arguments, code=code: (_ for _ in ()).throw(OSError(code, "no")))
        with pytest.raises(PermissionDenied, match=words):
            set_sysctl("drop_entry", 1, root)


def test_sysctls(root: Path) -> None:
    assert sysctls(root) == {"conn_reuse_mode": 1, "drop_entry": 0, "sync_threshold": "3 50", "est_cpulist": "0"}
    set_sysctl("conn_reuse_mode", 0, root)
    set_sysctl("sync_threshold", "5  100", root)
    set_sysctl("drop_entry", True, root)
    set_sysctl("est_cpulist", "0,1", root)
    assert sysctls(root) == {"conn_reuse_mode": 0, "drop_entry": 1, "sync_threshold": "5 100", "est_cpulist": "0,1"}


@pytest.mark.parametrize(("name", "near"), [
    ("con_reuse_mode", "conn_reuse_mode"), ("reuse", "conn_reuse_mode"), ("../vs/drop_entry", "drop_entry"), ("zz", "sync_"),
])  # fmt: skip
def test_an_unknown_sysctl_names_the_near_ones(root: Path, name: str, near: str) -> None:
    for attempt in (lambda: sysctl(name, root), lambda: set_sysctl(name, 1, root)):
        with pytest.raises(ValueError, match=near):
            attempt()


def test_a_value_that_was_not_kept_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.write", lambda *_: 0)
    with pytest.raises(IPVSError, match="it is '' now") as caught:
        set_sysctl("conn_reuse_mode", 7, root)
    assert caught.value.errno == errno.EINVAL


def test_the_probe_leaves_connection_counts_out_and_nothing_else(made: Callable[[bytes], Path]) -> None:
    path = made(TABLE)
    with TableProbe(path) as probe:
        first = probe.digest()
        assert first == probe.digest()
        made(TABLE.replace(b"1      1          0  ", b"1      12345678   910"))
        assert probe.digest() == first
        changes = [(b"Masq    1", b"Masq    2"), (b"Masq", b"Route"), (b"0B:", b"0C:")]
        changes += [(b"30000", b"6000"), (b" wlc", b" wrr"), (b" ops", b"")]
        seen = {first}
        for old, new in changes:
            made(TABLE.replace(old, new))
            seen.add(probe.digest())
        assert len(seen) == 1 + len(changes)
    probe.close()
    with pytest.raises(ValueError, match="closed"):
        probe.digest()


def test_a_table_that_went_with_its_module(made: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def pread(*_: object) -> bytes:
        raise OSError(errno.EIO, "")

    with TableProbe(made(TABLE)) as probe, monkeypatch.context() as patched:
        patched.setattr("os.pread", pread)
        with pytest.raises(ModuleMissing, match="modprobe"):
            probe.digest()


def damaged(text: bytes) -> st.SearchStrategy[bytes]:
    """The text with some of it replaced."""
    place = st.integers(0, len(text))
    junk = st.binary(max_size=8) | st.text("0123456789ABCDEF:~[] \n", max_size=40).map(str.encode)
    return st.tuples(place, st.integers(0, 40), junk).map(lambda cut: text[: cut[0]] + cut[2] + text[cut[0] + cut[1] :])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("procfs") / "text"


@given(text=st.binary() | st.sampled_from([CONNECTIONS, SYNCED, PER_CPU]).flatmap(damaged))
@example(text=CONNECTIONS.replace(b"57\n", b"9" * 5000 + b"\n"))
def test_any_text_parses_or_raises_decode_error(scratch: Path, text: bytes) -> None:
    scratch.write_bytes(text)
    with contextlib.suppress(DecodeError):
        assert all(0 <= one.client_port <= 65535 for one in connections(scratch))
    with contextlib.suppress(DecodeError):
        assert cpu_statistics(scratch)[-1].cpu is None
    with TableProbe(scratch) as probe:
        assert len(probe.digest()) == 16


def test_the_probe_tells_which_service_changed(made: Callable[[bytes], Path]) -> None:
    path = made(TABLE)
    with TableProbe(path) as probe:
        first = probe.services()
        names = ["tcp/[fd00:1::100]:80", "udp/10.1.0.100:53", "tcp/10.1.0.100:80", "fwmark/7"]
        assert list(map(str, first)) == names
        path.write_bytes(TABLE.replace(b"Masq    1      1          0 ", b"Masq    1      9          4 "))
        assert probe.services() == first, "counts of connections are no change"
        path.write_bytes(TABLE.replace(b"0A01000B:0050      Masq    1 ", b"0A01000B:0050      Masq    2 "))
        changed = [str(key) for key, digest in probe.services().items() if digest != first[key]]
        assert changed == ["tcp/10.1.0.100:80"]


def test_a_table_that_is_none_is_a_decode_error(made: Callable[[bytes], Path]) -> None:
    with TableProbe(made(b"TCP  0A010064ZZ:0050 rr \n")) as probe, pytest.raises(DecodeError):
        probe.services()
