"""What the status page costs with 100 readers: `python -m tests.bench.page [--shapes 4x5 1000x10] [--readers 100]`.

fusisd's core on a real loop over the fake kernel with its answers remembered, its web application on the real server. The
readers are another process: each keeps a connection, asks once a second with the entity tag it has and takes gzip, as the
page's script does. Figures: this process's CPU time as a share of a core, beyond what it takes with no reader; the answers
and how many of them were 304; the slowest; how late the loop was, by a task that wants to run each millisecond. At rest
nothing changes; busy, something happens each second, so that each page is drawn and sent anew.
Does not: measure the browser.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
import threading
import time
from http.client import HTTPConnection
from itertools import pairwise
from statistics import quantiles

from fusisd.web.server import TcpListener
from tests.bench.metrics import Bench, tick
from tests.bench.table import Shape


def read_pages(port: int, readers: int, seconds: float) -> None:
    """Be the readers, and print the seconds and the status of each answer as JSON."""
    answers: list[tuple[float, int, int]] = []
    end_s = time.monotonic() + seconds

    def reader(number: int) -> None:
        time.sleep(number / readers)
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        etag = ""
        while time.monotonic() < end_s:
            began_s = time.monotonic()
            connection.request("GET", "/", headers={"If-None-Match": etag, "Accept-Encoding": "gzip"})
            answer = connection.getresponse()
            size = len(answer.read())
            etag = answer.headers["ETag"]
            answers.append((time.monotonic() - began_s, answer.status, size))
            time.sleep(max(0.0, began_s + 1.0 - time.monotonic()))
        connection.close()

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(answers))


async def happen(bench: Bench) -> None:
    """Something each second, for ever."""
    number = 0
    while True:
        number += 1
        bench.control.journal.tell("host", f"something happened, {number}")
        await asyncio.sleep(1.0)


async def read_by(bench: Bench, readers: int, seconds: float) -> tuple[float, list[tuple[float, int, int]]]:
    """This process's share of a core meanwhile, and the answers that so many readers got."""
    (listener,) = bench.server.addresses
    assert isinstance(listener, TcpListener)
    words = ["-m", "tests.bench.page", "--be", str(listener.port), "--readers", str(readers), "--seconds", str(seconds)]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    began, began_cpu = time.perf_counter(), time.process_time()
    out, _ = await process.communicate()
    return (time.process_time() - began_cpu) / (time.perf_counter() - began), json.loads(out)


async def lateness(bench: Bench, readers: int, seconds: float) -> float:
    """How late the loop was at the most; apart from the rest, for such a task takes its own share."""
    ticks = list[float]()
    ticking = asyncio.ensure_future(tick(ticks))
    await read_by(bench, readers, seconds)
    ticking.cancel()
    return max(after - before - 0.001 for before, after in pairwise(ticks))


async def measure(shape: Shape, readers: int, seconds: float) -> None:
    """Print the figures of one shape."""
    bench = Bench(shape, real=False)
    bench.server.start()
    running = asyncio.ensure_future(bench.control.run())
    await read_by(bench, 1, 2.0)
    gc.collect()
    gc.freeze()  # as the daemon does once it has started
    print(f"\n{shape}, {readers} readers")
    one, _ = await read_by(bench, 1, seconds)
    for name in ("at rest", "busy"):
        happening = asyncio.ensure_future(happen(bench)) if name == "busy" else None
        share, answers = await read_by(bench, readers, seconds)
        late_s = await lateness(bench, readers, min(seconds, 5.0))
        if happening is not None:
            happening.cancel()
        cuts_s = quantiles((row[0] for row in answers), n=100)
        same = sum(status == 304 for _, status, _ in answers)
        size = max(size for *_, size in answers)
        print(f"  {name:8}{share * 100:.1f} % of a core, {one * 100:.1f} % with one reader; ", end="")
        print(f"{len(answers)} answers, {same} of them 304")
        print(f"          p50 {cuts_s[49] * 1e3:.1f}, p99 {cuts_s[98] * 1e3:.1f} ms; {size / 1e3:.1f} kB packed; ", end="")
        print(f"loop late {late_s * 1e3:.1f} ms at the most", flush=True)
    running.cancel()
    await asyncio.to_thread(bench.server.stop)


def main() -> int:
    """Measure each shape."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.page")
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=[Shape(4, 5), Shape(1000, 10)])
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--be", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.be is not None:
        read_pages(options.be, options.readers, options.seconds)
        return 0
    for shape in options.shapes:
        asyncio.run(measure(shape, options.readers, options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
