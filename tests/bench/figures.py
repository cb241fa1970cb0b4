"""What the seconds mean: medians, ratios, targets, and all of it as text. Pure functions.

A ratio is the median of the ratios within each run, where both contenders had the machine in the same mood; so it may
differ a little from the ratio of the medians.
Does not: measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

Run = dict[str, float]  # by measure; empty: not done
Runs = dict[str, list[Run]]  # by contender, by number of the run
Results = dict[str, Runs]  # by shape

IPVSADM, LIMIT, OURS, PYROUTE2 = "ipvsadm", "C limit", "pyipvs", "pyroute2"
TEN_THOUSAND = ("1000x10", "100x100", "10000x1", "1000x10v6")
MEMORY_SHAPE = "1000x100"

MEASURES = {
    "load": "load",
    "load_sends": "load, sends only",
    "read_cold": "read, cold",
    "read_warm": "read, warm",
    "objects_warm": "read+objects, warm",
    "list_stats": "-ln --stats --exact",
    "names_cold": "names+weights, cold",
    "names_warm": "names+weights, warm",
    "update": "update",
    "delete": "delete",
    "pair": "add+delete pair",
    "edit_read": "read beside edit",
    "edit_whole": "read+diff+apply 10",
    "edit_alone": "diff+apply 10",
    "edit_unchanged": "diff, unchanged",
    "edit_names_read": "names beside edit",
    "edit_names_whole": "names+diff+apply 10",
    "edit_names_alone": "diff+apply 10, names",
    "edit_names_unchanged": "diff, unch., names",
    "memory_mb": "snapshot, MB",
}
# What a measure is compared with where the other has none of this name: ipvsadm has one read, which is always cold.
_FOR_IPVSADM = {name: "read_cold" for name in ("read_warm", "objects_warm", "names_cold", "names_warm", "list_stats")}
_FOR_LIMIT = {"names_cold": "read_cold", "names_warm": "read_warm", "objects_warm": "read_warm", "list_stats": "read_cold"}
COUNTERPARTS: dict[str, dict[str, str]] = {IPVSADM: _FOR_IPVSADM, LIMIT: _FOR_LIMIT}


@dataclass(frozen=True)
class Target:
    """What ours must reach in one measure: `faster` times faster than `base`, or at most `slower` times its time.

    Without a base `slower` is the limit itself. No shapes: all of them.
    """

    text: str
    measure: str
    base: str | None = None
    faster: float | None = None
    slower: float | None = None
    shapes: tuple[str, ...] = ()
    base_measure: str | None = None  # of ours when given with base OURS


def _write_targets() -> Iterator[Target]:
    for verb in ("load", "update", "delete"):
        yield Target(f"{verb} >= 100 x faster than ipvsadm -R", verb, IPVSADM, faster=100)
        yield Target(f"{verb} >= 200 x faster than pyroute2", verb, PYROUTE2, faster=200)
        yield Target(f"{verb} <= 3 x the C limit", verb, LIMIT, slower=3)


TARGETS = (
    *_write_targets(),
    Target("read, cold >= 2.5 x faster than ipvsadm -Sn", "read_cold", IPVSADM, faster=2.5, shapes=("1000x10",)),
    Target("read, warm >= 4 x faster than ipvsadm -Sn", "read_warm", IPVSADM, faster=4, shapes=("1000x10",)),
    Target("read, warm <= 2.2 x the C limit", "read_warm", LIMIT, slower=2.2, shapes=("1000x10",)),
    Target("read, cold not slower than ipvsadm -Sn", "read_cold", IPVSADM, faster=1, shapes=("100x100",)),
    Target("read, warm not slower than ipvsadm -Sn", "read_warm", IPVSADM, faster=1, shapes=("100x100",)),
    Target("names+weights, cold >= 3 x ipvsadm -Sn", "names_cold", IPVSADM, faster=3, shapes=("100x100",)),
    Target("names+weights, warm >= 3 x ipvsadm -Sn", "names_warm", IPVSADM, faster=3, shapes=("100x100",)),
    Target("add+delete pair <= 1.4 x the C limit", "pair", LIMIT, slower=1.4),
    Target(
        "read+diff+apply of 10 <= 1.3 x read", "edit_whole", OURS, slower=1.3, shapes=TEN_THOUSAND, base_measure="edit_read"
    ),
    Target(
        "names+diff+apply of 10 <= 1.3 x names",
        "edit_names_whole",
        OURS,
        slower=1.3,
        shapes=TEN_THOUSAND,
        base_measure="edit_names_read",
    ),
    Target("snapshot of 100,000 < 60 MB", "memory_mb", slower=60, shapes=(MEMORY_SHAPE,)),
)


@dataclass(frozen=True)
class Verdict:
    """A target in one shape; `value` is the ratio (or the figure), None when not measured."""

    target: Target
    shape: str
    value: float | None

    @property
    def reached(self) -> bool | None:
        """None when not measured."""
        if self.value is None:
            return None
        if self.target.faster is not None:
            return self.value >= self.target.faster
        assert self.target.slower is not None
        return self.value < self.target.slower if self.target.base is None else self.value <= self.target.slower


def values(runs: Runs, contender: str, measure: str) -> list[float]:
    """Of the runs that have it."""
    return [run[measure] for run in runs.get(contender, []) if measure in run]


def ratio(runs: Runs, over: tuple[str, str], under: tuple[str, str]) -> float | None:
    """The median, over the runs that have both, of one (contender, measure) divided by another."""
    pairs = zip(runs.get(over[0], []), runs.get(under[0], []), strict=False)
    ratios = [a[over[1]] / b[under[1]] for a, b in pairs if over[1] in a and under[1] in b]
    return median(ratios) if ratios else None


def counterpart(base: str, measure: str) -> str:
    """The measure of `base` that this one is compared with."""
    return COUNTERPARTS.get(base, {}).get(measure, measure)


def faster(runs: Runs, base: str, contender: str, measure: str) -> float | None:
    """How many times faster than `base`."""
    return ratio(runs, (base, counterpart(base, measure)), (contender, measure))


def slower(runs: Runs, base: str, contender: str, measure: str) -> float | None:
    """How many times the time of `base`."""
    return ratio(runs, (contender, measure), (base, counterpart(base, measure)))


def verdicts(results: Results) -> list[Verdict]:
    """Every target in every measured shape that it speaks of."""
    return [
        Verdict(target, shape, _value(target, runs))
        for target in TARGETS
        for shape, runs in results.items()
        if shape in target.shapes or (not target.shapes and shape != MEMORY_SHAPE)
    ]


def _value(target: Target, runs: Runs) -> float | None:
    if target.base is None:
        seen = values(runs, OURS, target.measure)
        return median(seen) if seen else None
    if target.base_measure is not None:
        return ratio(runs, (OURS, target.measure), (target.base, target.base_measure))
    compare = slower if target.faster is None else faster
    return compare(runs, target.base, OURS, target.measure)


def table(shape: str, runs: Runs) -> str:
    """One shape as text: a row for each measure and contender."""
    rows: list[tuple[str, ...]] = [("", "", "runs", "median", "min - max", "x faster than", "x the time of")]
    rows.append(("measure", "contender", "", "", "", IPVSADM, LIMIT))
    for measure, title in MEASURES.items():
        for contender in runs:
            if seen := values(runs, contender, measure):
                show = _megabytes if measure == "memory_mb" else _seconds
                spread = f"{show(min(seen))} - {show(max(seen))}"
                ratios = _number(faster(runs, IPVSADM, contender, measure)), _number(slower(runs, LIMIT, contender, measure))
                rows.append((title, contender, str(len(seen)), show(median(seen)), spread, *ratios))
    return f"{shape}\n" + _columns(rows)


def judgement(results: Results) -> str:
    """Every target: reached or not, and the figure."""
    rows: list[tuple[str, ...]] = [("target", "shape", "measured", "")]
    words = {True: "reached", False: "NOT REACHED", None: "not measured"}
    for verdict in verdicts(results):
        rows.append((verdict.target.text, verdict.shape, _number(verdict.value), words[verdict.reached]))
    return "Targets\n" + _columns(rows)


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([word.ljust(width) for word, width in zip(row, widths, strict=True)] for row in rows)
    return "".join("  ".join(row).rstrip() + "\n" for row in padded)


def _seconds(value: float) -> str:
    return f"{value * 1e6:.1f} us" if value < 0.001 else f"{value:.4f} s"


def _megabytes(value: float) -> str:
    return f"{value:.1f} MB"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
