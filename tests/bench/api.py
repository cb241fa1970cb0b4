"""What the API carries: `python -m tests.bench.api [--each 1 10]` (`make bench-api`; needs wrk for the reads).

Reads: `GET /v1/services` of a thousand services by 50 clients (wrk, kept connections), beside plain Bottle on plain cheroot
that serves a constant of the same size, by turns, several rounds of each. Plain cheroot is given its best: ten threads, and
no limit on kept connections. Writes: 20 clients at once, each changing the weight of a destination of its own again and
again, beside an append and fdatasync of 4 KiB in the same directory, before and after. Readers ask fusisd's core and web
application over the fake kernel with its answers remembered, in which nothing changes; writers a whole fusisd without a
kernel (--dry-run). Clients share the machine's processors with both.
Does not: measure the kernel (tests/bench/core.py), or a network.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

from fusisd.web.server import TcpListener
from tests.bench.table import Shape
from tests.fusisd.dry import ROOT, Dry
from tests.lab.expect import poll

SERVICES = 1000
READERS, WRITERS = 50, 20
PLACE = "/v1/services"
APPENDED = 4096
WARM_UP_S = 1
TIMES = re.compile(r"Requests/sec:\s+([0-9.]+)")
P99 = re.compile(r"99%\s+([0-9.]+)(us|ms|s)")
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Read(NamedTuple):
    """One run of the readers."""

    per_s: float
    p99_s: float


def document(shape: Shape) -> dict[str, object]:
    """A table for `POST /v1/apply`."""
    services = {}
    for number in range(shape.services):
        rows = range(number * shape.each, (number + 1) * shape.each)
        destinations = {f"d{n}": {"address": shape.real(n), "port": 80} for n in rows}
        key = {"protocol": "tcp", "address": shape.service(number), "port": 80}
        services[f"s{number}"] = {**key, "destinations": destinations}
    return {"managed_by": "bench", "services": services}


@contextmanager
def fusisd(shape: Shape, home: Path) -> Iterator[Dry]:
    """A daemon with such a table."""
    dry = Dry(home)
    dry.start()
    try:
        status, answer = dry.ask("POST", "/v1/apply", document(shape))
        if status != 200:
            raise SystemExit(f"the table was refused: {status} {answer[:200]!r}")
        yield dry
    finally:
        dry.end()


@contextmanager
def server(role: str, home: Path) -> Iterator[int]:
    """A process of this file in a role that prints its port first; the port."""
    told = home / "port"
    told.unlink(missing_ok=True)
    with open(told, "wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "tests.bench.api", *role.split()], cwd=ROOT, stdout=output)
    try:
        yield int(poll(told.read_text, 60, f"{role}: its port"))
    finally:
        process.terminate()
        process.wait(30)


def serve_plain(size: int) -> None:
    """Be plain Bottle on plain cheroot with a constant of this size, for ever."""
    from bottle import Bottle  # noqa: PLC0415 - this process alone
    from cheroot.wsgi import Server  # noqa: PLC0415

    app, body = Bottle(), b"x" * size
    app.route(PLACE, "GET", lambda: body)
    server = Server(("127.0.0.1", 0), app, numthreads=10)
    server.keep_alive_conn_limit = 10_000
    server.prepare()
    print(server.bind_addr[1], flush=True)
    server.serve()


async def serve_fusisd(shape: Shape) -> None:
    """Be fusisd's core and web application with such a table, for ever."""
    from tests.bench.metrics import Bench  # noqa: PLC0415 - this process alone

    bench = Bench(shape, real=False)
    bench.server.start()
    (listener,) = bench.server.addresses
    assert isinstance(listener, TcpListener)
    gc.collect()
    gc.freeze()  # as the daemon does once it has started
    print(listener.port, flush=True)
    await bench.control.run()


def read(port: int, seconds: int) -> Read:
    """By wrk."""
    words = ["wrk", "-t2", f"-c{READERS}", f"-d{seconds}s", "--timeout", "30s", "--latency", f"http://127.0.0.1:{port}{PLACE}"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    times, p99 = TIMES.search(said), P99.search(said)
    if times is None or p99 is None or "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"wrk says:\n{said}")
    return Read(float(times[1]), float(p99[1]) * SECONDS[p99[2]])


def size_of(port: int) -> int:
    """Of the list, in bytes."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", PLACE)
    size = len(connection.getresponse().read())
    connection.close()
    return size


def reads(shape: Shape, rounds: int, seconds: int, home: Path) -> None:
    """Print what readers get, of both by turns."""
    with server(f"--be-fusisd {shape}", home) as ours:
        size = size_of(ours)
        with server(f"--be-plain {size}", home) as theirs:
            for port in (ours, theirs):
                read(port, WARM_UP_S)
            pairs = [(read(ours, seconds), read(theirs, seconds)) for _ in range(rounds)]
    print(f"\nGET {PLACE}, {shape}: {size / 1e3:.0f} kB, {READERS} clients, medians of {rounds} rounds")
    for number, name in enumerate(("fusisd", "plain Bottle on cheroot, a constant")):
        runs = [pair[number] for pair in pairs]
        per_s, p99_s = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"  {name:38}{per_s:8.0f} requests/s, p99 {p99_s * 1e3:.0f} ms")
    ratios = sorted(ours.per_s / theirs.per_s for ours, theirs in pairs)
    print(f"  ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); the goal is 0.7", flush=True)


def writes(seconds: float, home: Path) -> None:
    """Print what writers wait, beside the disk."""
    with fusisd(Shape(WRITERS, 2), home) as dry:
        before = syncs(home)
        took = written(dry, seconds)
        after = syncs(home)
    disk = before + after
    print(f"\nPATCH of a weight, {WRITERS} clients at once for {seconds:g} s: {len(took) / seconds:.0f} changes/s")
    for name, values in ((f"append of {APPENDED} bytes and fdatasync", disk), ("a change, from request to answer", took)):
        print(f"  {name:42}p50 {statistics.median(values) * 1e3:.2f}, p99 {p99_of(values) * 1e3:.2f} ms")
    ratios = (p99_of(took) / p99_of(disk), p99_of(took) / statistics.median(disk))
    print("  a change's p99 is {:.1f} x the disk's p99, {:.1f} x its median".format(*ratios), flush=True)


def p99_of(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[int(len(values) * 0.99)]


def syncs(home: Path, times: int = 200) -> list[float]:
    """Seconds of each append that is on disk."""
    took = []
    with open(home / "appended", "ab", buffering=0) as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(b"x" * APPENDED)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return took


def written(dry: Dry, seconds: float) -> list[float]:
    """Seconds of each change, by writers of another process."""
    token = (dry.state_dir / "token").read_text().strip()
    words = [sys.executable, "-m", "tests.bench.api", "--be-writers", str(dry.port), "--seconds", str(seconds)]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True, input=token)
    took: list[float] = json.loads(done.stdout)
    return took


def write(port: int, seconds: float) -> None:
    """Be the writers, with the token of stdin, and print the seconds of each change as JSON."""
    headers = {"Authorization": f"Bearer {sys.stdin.read()}", "Content-Type": "application/merge-patch+json"}
    took, end_s = list[float](), time.monotonic() + seconds

    def writer(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        weight = 1
        while time.monotonic() < end_s:
            weight = weight % 100 + 1
            began_s = time.perf_counter()
            connection.request("PATCH", f"{PLACE}/s{number}/destinations/d{number * 2}", f'{{"weight":{weight}}}', headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{answer.status} {body!r}")
            took.append(time.perf_counter() - began_s)
        connection.close()

    _side_by_side(writer, WRITERS)
    print(json.dumps(took))


def _side_by_side(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    """Measure both."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.api")
    parser.add_argument("--each", nargs="+", type=int, default=[1, 10], help="destinations of each service")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--be-plain", type=int, metavar="SIZE", help=argparse.SUPPRESS)
    parser.add_argument("--be-fusisd", type=Shape.parse, metavar="SHAPE", help=argparse.SUPPRESS)
    parser.add_argument("--be-writers", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_plain is not None:
        serve_plain(options.be_plain)
    if options.be_fusisd is not None:
        logging.disable(logging.CRITICAL)
        asyncio.run(serve_fusisd(options.be_fusisd))
    if options.be_writers is not None:
        write(options.be_writers, options.seconds)
        return 0
    if shutil.which("wrk") is None:
        raise SystemExit("the readers are wrk's: apt-get install wrk")
    aside = ROOT / "build"
    aside.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=aside) as directory:  # where the checkout is: /tmp may be memory
        home = Path(directory)
        for each in options.each:
            reads(Shape(SERVICES, each), options.rounds, int(options.seconds), home)
        writes(options.seconds, home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
