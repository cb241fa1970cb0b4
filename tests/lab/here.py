"""Exit status 0 when this host's kernel has IPVS (loaded, or a module that modprobe would find), for `make run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    if Path("/proc/net/ip_vs").exists():
        return 0
    try:
        return subprocess.run(["modprobe", "-n", "-q", "ip_vs"], timeout=30).returncode
    except FileNotFoundError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
