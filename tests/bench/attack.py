"""What a good client notices of an attack on the HTTP front, and what it costs: `make attack` (a quarter of an hour).

fusisd as a process (--dry-run) with a table; 500 clients of each kind (attackers.py), over plain HTTP and over TLS; then
more clients than the cap on connections, of all kinds together, for minutes; then slowhttptest's four modes where that is
installed. Meanwhile a good client makes a new connection each 20 ms and asks one GET, with a limit of 5 s. Both sides share
this machine's processors and its loopback, which has no limit for each peer. Figures: the GET by the clock, the daemon's CPU
time in share of one core, and its resident memory: at the start, after a minute, at the end, and the most.
Does not: measure the network, or answers (the table is in memory).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fusisd.web.connection import Limits
from tests.bench.attackers import FOR_TLS, KINDS, MIXED, unverified
from tests.fusisd.dry import ROOT, Dry

PEM = ROOT / "tests/fusisd/web.test.pem"
EVERY_S, LIMIT_S = 0.02, 5.0
P99_LIMIT_S = 0.25
GROWTH_LIMIT_MB = {False: 64.0, True: 128.0}
"""Without and with TLS."""
CREEP_LIMIT_MB = 4.0
"""What resident memory may differ between a minute and the end: an allocator's breath, not growth."""
BIG = "/services"
SLOWHTTPTEST = {"-H": "slow headers", "-B": "slow body", "-R": "ranges", "-X": "slow read"}


@dataclass
class Figures:
    """Of one attack."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    cpu_share: float = 0.0
    memory_mb: list[float] = field(default_factory=list)
    """Each second."""

    def quantile(self, share: float) -> float:
        """Of the good client's seconds."""
        ordered = sorted(self.seconds) or [float("inf")]
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    @property
    def at_a_minute_mb(self) -> float:
        """Or at the end of a shorter attack."""
        return self.memory_mb[min(60, len(self.memory_mb) - 1)]

    def missed(self, tls: bool, over_the_cap: bool = False) -> list[str]:
        """What is not as it should be; of an attack over the cap on connections no time is wanted."""
        grown, crept = max(self.memory_mb) - self.memory_mb[0], max(self.memory_mb[60:] or [0.0]) - self.at_a_minute_mb
        found = {
            "GETs failed": self.failed > 0,
            "p99": not over_the_cap and self.quantile(0.99) > P99_LIMIT_S,
            "growth": grown > GROWTH_LIMIT_MB[tls],
            "creep": crept > CREEP_LIMIT_MB,
        }
        return [name for name, is_missed in found.items() if is_missed]


class Target:
    """A dry fusisd with a table, asked by a good client."""

    def __init__(self, home: Path, tls: bool, services: int) -> None:
        """`tls`: plain HTTP is not asked."""
        self.dry, self.tls = Dry(home), tls
        self._context = unverified() if tls else None
        pem = home / "pem"
        pem.touch(0o600)  # git keeps no mode that a key should have
        pem.write_bytes(PEM.read_bytes())
        options = ["--tls-cert", str(pem), "--tls-key", str(pem)] if tls else []
        self.dry.start(self.dry.command("--log-level", "warning", *options))
        servers = {f"rs{n}": {"address": f"10.0.0.{n}", "port": 80} for n in range(1, 6)}
        for number in range(services):
            service = {"name": f"s{number}", "protocol": "tcp", "address": f"10.1.{number // 200}.{number % 200 + 1}"}
            status, body = self.dry.ask("POST", "/v1/services", {**service, "port": 80, "destinations": servers})
            if status != 201:
                raise AssertionError(body)

    def get(self, path: str) -> None:
        """One GET on a new connection. Raises OSError when it is not answered in time."""
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", self.dry.port), LIMIT_S))
            if self._context is not None:
                sock = stack.enter_context(self._context.wrap_socket(sock))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"answered {answer[:100]!r}")

    def memory_mb(self) -> float:
        """Resident now."""
        status = Path(f"/proc/{self.dry.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def cpu_s(self) -> float:
        """Used since its start."""
        fields = Path(f"/proc/{self.dry.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def measure(self, for_s: float) -> Figures:
        """What the good client sees for so long."""
        figures = Figures()
        began, began_cpu = time.monotonic(), self.cpu_s()
        while (now := time.monotonic()) < began + for_s:
            if now >= began + len(figures.memory_mb):
                figures.memory_mb.append(self.memory_mb())
            try:
                self.get("/services/s1")
                figures.seconds.append(time.monotonic() - now)
            except OSError:
                figures.failed += 1
            time.sleep(max(0.0, now + EVERY_S - time.monotonic()))
        figures.cpu_share = (self.cpu_s() - began_cpu) / (time.monotonic() - began)
        return figures


@contextmanager
def target(tls: bool, services: int) -> Iterator[Target]:
    """Running, and warm."""
    with tempfile.TemporaryDirectory() as home:
        made = Target(Path(home), tls, services)
        try:
            for path in (BIG, "/services", *["/services/s1"] * 200):
                made.get(path)
            yield made
        finally:
            made.dry.close()


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended afterwards."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def attack(what: str, clients: int, for_s: float, tls: bool, services: int) -> bool:
    """Print one attack's figures; whether all was as it should be."""
    with target(tls, services) as made:
        at_rest = made.memory_mb()
        words = [str(made.dry.port), what, str(clients), BIG, *(["tls"] if tls else [])]
        with running(sys.executable, "-m", "tests.bench.attackers", *words):
            figures = made.measure(for_s)
        figures.memory_mb.insert(0, at_rest)
    over_the_cap = clients > Limits().connections
    return show(f"{f'{clients} {what}' if clients else 'nobody'}{', TLS' if tls else ''}", figures, tls, over_the_cap)


def slowhttptest(flag: str, for_s: float, tls: bool, services: int) -> bool:
    """One of its modes."""
    with target(tls, services) as made:
        at_rest = made.memory_mb()
        url = f"{'https' if tls else 'http'}://127.0.0.1:{made.dry.port}{BIG}"
        words = ["-c", "500", "-r", "200", "-l", str(int(for_s)), "-i", "5", "-p", "3", "-u", url]
        with running("slowhttptest", flag, *words) as tester:
            figures = made.measure(for_s)
            try:
                said = tester.communicate(timeout=60)[0]
            except subprocess.TimeoutExpired:
                said = ""
        figures.memory_mb.insert(0, at_rest)
    available = re.findall(r"service available:\s*(\S+)", re.sub(r"\x1b\[[0-9;]*m", "", said))
    is_well = show(f"slowhttptest {flag} {SLOWHTTPTEST[flag]}{', TLS' if tls else ''}", figures, tls)
    print(f"{'':34}it found the service available: {available.count('YES')} of {len(available)} times", flush=True)
    return is_well and bool(available) and set(available) == {"YES"}


def show(name: str, figures: Figures, tls: bool, over_the_cap: bool = False) -> bool:
    """Print a row; whether nothing was missed."""
    missed = figures.missed(tls, over_the_cap)
    times = " ".join(f"{figures.quantile(share) * 1e3:7.1f}" for share in (0.5, 0.99, 1.0))
    memory = figures.memory_mb
    shown = " ".join(f"{one:6.1f}" for one in (memory[0], figures.at_a_minute_mb, memory[-1], max(memory)))
    counts = f"{len(figures.seconds):6} {figures.failed:6}"
    print(f"{name:34}{counts} {times}  {figures.cpu_share * 100:4.0f} %  {shown}  {', '.join(missed) or 'well'}", flush=True)
    return not missed


def main(arguments: list[str] | None = None) -> int:
    """Attack in every way; 1 when something was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attack")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of clients, each alone (default %(default)s)")
    parser.add_argument("--clients", type=int, default=500, help="of each kind (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each kind (default %(default)s)")
    parser.add_argument("--mixed", type=int, default=1500, help="clients of all kinds together (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=5.0, help="for them; 0 leaves them out (default %(default)s)")
    parser.add_argument("--services", type=int, default=200, help="with 5 servers each (default %(default)s)")
    parser.add_argument("--plain", action="store_true", help="no TLS")
    options = parser.parse_args(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    print(f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {os.cpu_count()} CPUs, kernel {platform.release()}")
    print(f"{'':36}GETs failed   p50 ms     p99     max   CPU     MB at rest, a minute, end, most")
    done = []
    for tls in (False,) if options.plain else (False, True):
        done.append(attack(KINDS[0], 0, options.seconds, tls, options.services))
        for kind in filter(None, options.kinds.split(",")):
            if tls or kind not in FOR_TLS:
                done.append(attack(kind, options.clients, options.seconds, tls, options.services))
        if options.minutes:
            done.append(attack(MIXED, options.mixed, options.minutes * 60, tls, options.services))
        if shutil.which("slowhttptest"):
            done += [slowhttptest(flag, options.seconds, tls, options.services) for flag in SLOWHTTPTEST]
        else:
            print("slowhttptest is not installed (Debian has it): left out")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
