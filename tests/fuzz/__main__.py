"""Coverage-guided fuzzing of what pyipvs and the Serf client decode: `make fuzz`, or `python -m tests.fuzz [TARGET ...]`,
for FUZZ_S seconds in all (300).

Each target has a process of its own, one after another, in which atheris (libFuzzer for Python) starts from the
committed corpus and from what earlier runs found worth keeping in .fuzz/. What breaks a target is written there as
a file TARGET-crash-...; under another name in tests/fuzz/corpus/TARGET it is an example of the suite for ever.
Does not: install atheris, which is for developers alone.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CORPUS, FOUND = HERE / "corpus", HERE.parents[1] / ".fuzz"
LONGEST_INPUT = 4096
LONGEST_RUN_S = 10  # of one input: a decoder that takes longer is a finding
MEMORY_MIB = 512


def main(names: list[str]) -> int:
    """How many targets broke."""
    if importlib.util.find_spec("atheris") is None:
        sys.exit(f"fuzzing needs atheris, which no test does: {sys.executable} -m pip install atheris")
    names = names or sorted(folder.name for folder in CORPUS.iterdir())
    each_s = max(1, int(os.environ.get("FUZZ_S", "300")) // len(names))
    broken = [name for name in names if not ran_well(name, each_s)]
    for name in broken:
        print(f"==> {name} broke: move its file in {FOUND} to {CORPUS / name}, and the suite shows it")
    print(f"==> {len(names) - len(broken)} of {len(names)} targets held for {each_s} s each")
    return len(broken)


def ran_well(name: str, seconds: int) -> bool:
    print(f"==> {name}: {seconds} s", flush=True)
    grown = FOUND / name
    grown.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", f"-timeout={LONGEST_RUN_S}"]
    limits += [f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={FOUND / name}-", "-print_final_stats=1", "-verbosity=0"]
    command = [sys.executable, "-c", f"from tests.fuzz.__main__ import fuzz; fuzz({name!r})"]
    return subprocess.run([*command, *limits, str(grown), str(CORPUS / name)], cwd=HERE.parents[1]).returncode == 0


def fuzz(name: str) -> None:
    """One target in this process, with libFuzzer's own words on the command line; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["pyipvs", "fusisd.serf"]):
        from tests.fuzz.targets import TARGETS

    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
