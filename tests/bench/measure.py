"""One phase of one contender in a process of its own: `python -m tests.bench.measure CONTENDER SHAPE PHASE`.

Prints a JSON object of seconds. After each verb the kernel's own table (/proc/net/ip_vs) must be what the verb was to
make; status 1 and a line on stderr when it is not.
Does not: make the network namespace that it runs in.
"""

from __future__ import annotations

import json
import sys

from tests.bench.contenders import CONTENDERS, NEW_WEIGHT, Contender, Seconds, WrongCount
from tests.bench.table import Shape, in_kernel

# the verbs of each phase, each with the weight that every destination has after it (None: nothing is left)
PHASES: dict[str, tuple[tuple[str, int | None], ...]] = {
    "load": (("load", 1),),
    "read": (("read", 1),),
    "names": (("names", 1),),
    "memory": (("memory", 1),),
    "edit": (("edit", 1),),
    "change": (("update", NEW_WEIGHT), ("pair", NEW_WEIGHT), ("delete", None)),
}


def phases(contender: type[Contender]) -> list[str]:
    """Those of a whole run, in order; only ours has names and edit."""
    return [name for name in ("load", "read", "names", "edit", "change") if hasattr(contender, PHASES[name][0][0])]


def main(words: list[str]) -> int:
    """Run the phase."""
    name, shape, phase = words[0], Shape.parse(words[1]), words[2]
    contender = CONTENDERS[name](shape)
    seconds: Seconds = {}
    try:
        for verb, weight in PHASES[phase]:
            seconds |= getattr(contender, verb)()
            wanted = (0, 0, set()) if weight is None else (shape.services, shape.destinations, {weight})
            if (found := in_kernel()) != wanted:
                raise WrongCount(f"after {verb} of {name} the kernel has {found} instead of {wanted}")
    except WrongCount as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
