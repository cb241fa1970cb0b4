"""The manual tells the truth: its sessions run, its command lines parse, and it leaves nothing out."""

from __future__ import annotations

import dataclasses
import doctest
import errno
import functools
import inspect
import re
import shlex
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import pyipvs
from pyipvs import cli, daemons, wire
from pyipvs.client import IPVS, Batch
from pyipvs.const import Command
from pyipvs.errors import KernelError
from pyipvs.framing import request
from pyipvs.model import Info
from pyipvs.testing import FakeKernel
from tests import docs_reference

MANUAL = docs_reference.PAGE.parent
PAGES = sorted(path for path in MANUAL.glob("*.md") if path != docs_reference.PAGE)
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

CONNECTIONS = """\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A090002 D3A2 0A000001 0050 0A000002 0050 ESTABLISHED     897
TCP 0A090002 0000 0A000001 0050 0A000002 0050 ASSURED         300
"""
TABLE = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A000001:0050 rr
  -> 0A000002:0050      Route   1      3          0
"""
SYSCTLS = {"expire_nodest_conn": "0", "expire_quiescent_template": "0", "sync_threshold": "3\t50"}


class DaemonKernel(FakeKernel):
    """With sync daemons, which answer what the kernel was seen to answer (tests/kernel/test_daemons.py)."""

    def __init__(self) -> None:
        super().__init__()
        self._running: dict[int, bytes] = {}

    def exchange(self, command: int, attributes: bytes) -> list[bytes]:
        if command not in (Command.NEW_DAEMON, Command.DEL_DAEMON):
            return super().exchange(command, attributes)
        values = wire.unpack(daemons.DAEMON, wire.unpack(wire.COMMAND, attributes)["daemon"])
        if command == Command.DEL_DAEMON and self._running.pop(values["state"], None) is None:
            raise KernelError(errno.ESRCH)
        if command == Command.NEW_DAEMON:
            chosen = {"max_length": 1472, "group": bytes((224, 0, 0, 81)), "port": 8848, "ttl": 1} | values
            self._running[values["state"]] = wire.pack(wire.COMMAND, {"daemon": wire.pack(daemons.DAEMON, chosen)})
        return []

    def dump(self, command: int, attributes: bytes) -> Iterator[memoryview]:
        if command != Command.GET_DAEMON:
            yield from super().dump(command, attributes)
        for answer in self._running.values() if command == Command.GET_DAEMON else ():
            yield memoryview(request(command, answer, 0, self.family, 1, 0))


def prepared(directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page's sessions begin with: the files of a kernel, and for the daemons' page an `ipvs`."""
    places = {"connections": CONNECTIONS, "TableProbe": TABLE}
    for name, text in places.items():
        (directory / name).write_text(text)
        monkeypatch.setattr(pyipvs, name, functools.partial(getattr(pyipvs, name), directory / name))
    root = directory / "vs"
    root.mkdir()
    for name, text in SYSCTLS.items():
        (root / name).write_text(f"{text}\n")
    for name in ("sysctl", "sysctls", "set_sysctl"):
        monkeypatch.setattr(pyipvs, name, functools.partial(getattr(pyipvs, name), root=root))
    return {"ipvs": IPVS(transport=DaemonKernel())}


def sessions(text: str) -> str:
    """A page with everything but its Python blocks blanked, so that lines keep their numbers."""
    kept, at = [], 0
    for block in FENCED.finditer(text):
        if block[1] == "python":
            kept += ["\n" * text.count("\n", at, block.start(2)), block[2]]
            at = block.end(2)
    return "".join(kept)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_sessions_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = prepared(tmp_path, monkeypatch)
    test = doctest.DocTestParser().get_doctest(sessions(path.read_text()), names, path.name, str(path), 0)
    told: list[str] = []
    results = doctest.DocTestRunner().run(test, out=told.append)
    assert results.failed == 0, "".join(told)


def test_every_python_block_is_a_session() -> None:
    blocks = [(path.name, block[2]) for path in PAGES for block in FENCED.finditer(path.read_text()) if block[1] == "python"]
    assert len(blocks) >= 40
    assert [(name, text) for name, text in blocks if not text.startswith(">>> ")] == []


def parsed(line: str) -> bool:
    """Whether the command's own parser takes this line, which begins with `pyipvs`."""
    with_values = re.sub(r"\bSERVICE\b", "tcp/10.0.0.1:80", re.sub(r"\bDEST\b", "10.0.0.2:80", line))
    try:
        cli._parser().parse_args(shlex.split(with_values)[1:])
    except ValueError:
        return False
    return True


def test_the_command_lines_parse() -> None:
    lines = [line for path in PAGES for block in FENCED.finditer(path.read_text()) if block[1] == "sh"
             for line in block[2].splitlines()]  # fmt: skip
    assert len(lines) >= 15
    spans = [span for path in PAGES for span in SPAN.findall(path.read_text()) if span.startswith("pyipvs ")]
    assert [line for line in [*lines, *spans] if not line.endswith("--help") and not parsed(line)] == []


@pytest.mark.parametrize(
    ("section", "prefix"),
    [
        ("The service", "pyipvs add service SERVICE "),
        ("The destination", "pyipvs add destination SERVICE DEST "),
        ("The sync daemon", "pyipvs daemon start master --interface eth0 "),
    ],
)
def test_the_options_opposite_those_of_ipvsadm_parse(section: str, prefix: str) -> None:
    text = (MANUAL / "ipvsadm.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    options = [span for line in text.splitlines() if line.startswith("| ") for span in SPAN.findall(line.rsplit("|", 2)[1])]
    assert len(options) >= 6
    assert [option for option in options if not parsed(prefix + option)] == []


IPVSADM = set(  # ipvsadm(8) of 1.31
    re.findall(
        r"\S+",
        """-A --add-service -E --edit-service -D --delete-service -C --clear -R --restore -S --save -a --add-server -e
    --edit-server -d --delete-server -L -l --list -Z --zero --set --start-daemon --stop-daemon -h --help -t --tcp-service
    -u --udp-service --sctp-service -f --fwmark-service -s --scheduler -p --persistent -M --netmask --pe -b --sched-flags
    -r --real-server -g --gatewaying -i --ipip --tun-type --tun-port --tun-nocsum --tun-csum --tun-remcsum -m
    --masquerading -w --weight -x --u-threshold -y --l-threshold -c --connection --timeout --daemon --stats --rate
    --thresholds --persistent-conn --tun-info --sort --nosort -n --numeric --exact -6 --ipv6 -o --ops --syncid
    --sync-maxlen --mcast-interface --mcast-group --mcast-port --mcast-ttl""",
    )
)


def test_every_option_of_ipvsadm_is_translated() -> None:
    first_cells = [
        line.split("|")[1] for line in (MANUAL / "ipvsadm.md").read_text().splitlines() if line.startswith("| `-")
    ]
    told = {word for cell in first_cells for span in SPAN.findall(cell) for word in span.split()}
    assert set(IPVSADM) - told == set()


def names() -> Iterator[str]:
    """Every public name, field, member, verb and keyword of a verb."""
    yield from pyipvs.__all__
    for thing in [*(getattr(pyipvs, name) for name in pyipvs.__all__), Info]:
        if not inspect.isclass(thing):
            yield from keywords(thing) if inspect.isfunction(thing) else ()
        elif issubclass(thing, Enum):
            yield from thing.__members__
        elif dataclasses.is_dataclass(thing):
            yield from (field.name for field in dataclasses.fields(thing))
        else:
            yield from getattr(thing, "_fields", ())
    for kind in (IPVS, Batch, FakeKernel):
        yield from keywords(kind.__init__) if kind is not Batch else ()
        for name, method in vars(kind).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                yield name
                yield from keywords(method) if name not in ("exchange", "dump", "send", "reserve") else ()
    yield from ("failures", "count", "line_number", "line", "reason", "operation", "what", "errno", "hint", "changes")


def keywords(function: Any) -> Iterator[str]:
    """Its parameters that have a default: those a caller names."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty:
            yield parameter.name


def test_nothing_public_is_left_out() -> None:
    """Of code, as prose has words like `port` anyway; the reference does not count, as it has everything."""
    texts = [path.read_text() for path in PAGES]
    code = "\n".join([block[2] for text in texts for block in FENCED.finditer(text)])
    code += "\n".join(span for text in texts for span in SPAN.findall(FENCED.sub("", text)))
    words = set(re.findall(r"\w+", code))
    assert sorted(set(names()) - words) == []


def test_every_error_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)`", (MANUAL / "errors.md").read_text(), re.MULTILINE)
    errors = {name for name in pyipvs.__all__ if issubclass_of_exception(getattr(pyipvs, name))}
    assert errors - set(rows) == set()


def issubclass_of_exception(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Exception)


def test_the_reference_is_up_to_date() -> None:
    assert docs_reference.PAGE.read_text() == docs_reference.page(), "run `python -m tests.docs_reference`"


def test_links_lead_somewhere_and_the_index_has_every_page() -> None:
    for path in [*PAGES, docs_reference.PAGE]:
        links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
        assert {link for link in links if not (MANUAL / link).exists()} == set(), path.name
    index = (MANUAL / "README.md").read_text()
    assert [path.name for path in MANUAL.glob("*.md") if f"]({path.name})" not in index and path.name != "README.md"] == []


def test_every_block_has_a_language_that_says_whether_it_runs() -> None:
    """`python` and `sh` are run or parsed by the tests above, `text` is not."""
    for path in PAGES:
        fences = re.findall(r"^```(.*)$", path.read_text(), re.MULTILINE)
        assert {*fences[::2]} <= {"python", "sh", "text"} and {*fences[1::2]} <= {""}, path.name
