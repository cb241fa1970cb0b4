"""The benchmark: `python -m tests.bench [--shapes ...] [--runs 7] [--json FILE]`, as root where IPVS is real.

Once, on the host: tests/bench/setup. Then in the lab guest (the whole takes about an hour; give --json a path in /lab-out):

    .venv/bin/python -m tests.lab.run --mem 1G --timeout 14400 --out build/bench/out -- \\
        .venv/bin/python -m tests.bench --json /lab-out/seconds.json

In each run all contenders take their turn, in an order that rotates, each in a fresh network namespace with lo up (a
used one keeps its deleted destinations for two minutes, and every add scans them) and each phase in a fresh process.
A contender whose counts are wrong loses that run, and the exit status is 1. One that the machine kills, or that takes too
long, loses that phase alone, which is said; it changes the exit status as little as a target that is not reached.
Does not: compare figures of different machines, or of different runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.contenders import CONTENDERS, Contender, Limit, Pyipvs, Seconds
from tests.bench.figures import MEMORY_SHAPE, TEN_THOUSAND, Results, Runs, judgement, table
from tests.bench.measure import phases
from tests.bench.table import Shape
from tests.lab.netns import unshare_network

SLOW_FROM = 10_000  # destinations
PAUSE_S = 0.5  # the kernel takes the last namespace down in the background
LIMIT_S = 1800.0
ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and judge."""
    options = _parse(arguments)
    if os.geteuid() != 0:
        print("bench: needs root and IPVS: run it in the lab, see the docstring", file=sys.stderr)
        return 2
    contenders = _present(options.contenders)
    _load_modules()
    bench = Bench(options.runs, options.slow_runs)
    for shape in options.shapes:
        bench.measure(shape, contenders)
        print(table(str(shape), bench.results[str(shape)]), flush=True)
        bench.save(options.json)
    if options.memory and Pyipvs in contenders:
        bench.measure_memory(Shape.parse(MEMORY_SHAPE))
        print(table(MEMORY_SHAPE, bench.results[MEMORY_SHAPE]), flush=True)
    bench.save(options.json)
    print(judgement(bench.results))
    for line in bench.ended:
        print(f"not measured: {line}")
    for line in bench.wrong:
        print(f"WRONG: {line}")
    return 1 if bench.wrong else 0


class Bench:
    """The runs and what they gave."""

    def __init__(self, runs: int, slow_runs: int) -> None:
        self._runs, self._slow_runs = runs, min(slow_runs, runs)
        self.results: Results = {}
        self.wrong: list[str] = []
        self.ended: list[str] = []

    def measure(self, shape: Shape, contenders: list[type[Contender]]) -> None:
        """All runs of a shape."""
        runs: Runs = {kind.name: [] for kind in contenders}
        self.results[str(shape)] = runs
        few = [kind for kind in contenders if kind.slow and shape.destinations >= SLOW_FROM]
        if few and self._slow_runs < self._runs:
            names = ", ".join(kind.name for kind in few)
            print(f"{shape}: {self._runs} runs, but {self._slow_runs} of {names} (--slow-runs)", flush=True)
        for number in range(self._runs):
            turn = number % len(contenders)
            for kind in contenders[turn:] + contenders[:turn]:
                skipped = kind in few and number >= self._slow_runs
                runs[kind.name].append({} if skipped else self._one(kind, shape, number))

    def measure_memory(self, shape: Shape) -> None:
        """A snapshot of the largest table by a process that does nothing else."""
        runs: Runs = {Pyipvs.name: []}
        self.results[str(shape)] = runs
        loader = Pyipvs if Limit.missing() else Limit
        for number in range(self._slow_runs):
            _fresh_namespace()
            loaded = self._phase(loader, shape, "load", number)
            runs[Pyipvs.name].append((loaded and self._phase(Pyipvs, shape, "memory", number)) or {})

    def save(self, path: Path | None) -> None:
        """The raw seconds so far."""
        if path is not None:
            machine = {"kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count()}
            lost = {"wrong": self.wrong, "ended": self.ended}
            path.write_text(json.dumps({"machine": machine, "seconds": self.results, **lost}, indent=1) + "\n")

    def _one(self, kind: type[Contender], shape: Shape, number: int) -> Seconds:
        """One run of one contender; empty when it went wrong, or when there is no table to go on with."""
        _fresh_namespace()
        seconds: Seconds = {}
        begun = time.monotonic()
        for phase in phases(kind):
            more = self._phase(kind, shape, phase, number)
            if more is None or (phase == "load" and not more):
                return {}
            seconds |= more
        print(f"bench: {shape} run {number + 1} {kind.name}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        return seconds

    def _phase(self, kind: type[Contender], shape: Shape, phase: str, number: int) -> Seconds | None:
        """Its seconds: none when the process was ended from outside, None when its counts are wrong."""
        words = [sys.executable, "-m", "tests.bench.measure", kind.name, str(shape), phase]
        what = f"{shape} run {number + 1} {kind.name} {phase}"
        try:
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            _note(self.ended, f"{what}: took more than {LIMIT_S:.0f} s")
            return {}
        if done.returncode < 0:
            _note(self.ended, f"{what}: killed by {signal.Signals(-done.returncode).name}")
            return {}
        if done.returncode:
            _note(self.wrong, f"{what}: {done.stderr.strip()[-1000:]}")
            return None
        seconds: Seconds = json.loads(done.stdout)
        return seconds


def _note(lost: list[str], line: str) -> None:
    lost.append(line)
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _present(names: list[str]) -> list[type[Contender]]:
    found = []
    for name in names:
        if reason := CONTENDERS[name].missing():
            print(f"{name} does not take part: {reason}")
        else:
            found.append(CONTENDERS[name])
    return found


def _fresh_namespace() -> None:
    """This process, and so its children, in a new network namespace with lo up."""
    unshare_network()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    time.sleep(PAUSE_S)


def _load_modules() -> None:
    """ip_vs and the scheduler: loading them belongs to nobody's seconds."""
    _fresh_namespace()
    subprocess.run(["ipvsadm", "-A", "-t", "127.0.0.1:80", "-s", "rr"], check=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="pyipvs beside its peers on real IPVS.")
    add = parser.add_argument
    shapes = [Shape.parse(text) for text in TEN_THOUSAND]
    add("--shapes", nargs="+", type=Shape.parse, default=shapes, metavar="SxD[v6]", help=f"default {' '.join(TEN_THOUSAND)}")
    add("--runs", type=int, default=7, help="of each shape (default 7)")
    add("--slow-runs", type=int, default=3, help="of ipvsadm, naive and pyroute2 from 10000 destinations on (default 3)")
    add("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME", help="default all")
    add("--no-memory", dest="memory", action="store_false", help="leave the snapshot of 100,000 destinations out")
    add("--json", type=Path, metavar="FILE", help="write the raw seconds there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
