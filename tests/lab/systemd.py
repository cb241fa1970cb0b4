"""A real systemd in a host of the lab: PID 1 of a PID namespace of its own, with the units that it is given and no others.

What units of a system pull in (sysinit.target and its like) stands there empty, so it is up in two seconds. For the guest
alone: it takes the guest's control groups, and users, /usr/bin and /etc are the guest's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.lab.expect import poll
from tests.lab.topology import Host

ROOT = Path(__file__).parents[2]
SEEN = Path("/opt/fusis-lab")  # where a user that is not root finds this checkout, wherever it is
STUBS = ("sysinit", "basic", "shutdown", "network-online", "sockets", "multi-user", "umount", "lab")
LIMIT_S = 60
# A control group for each systemd, of which it sees no more than its own as the root, and a /run/systemd: two that share one
# take each other's processes and notifications. (`ip netns exec` has mounted a /sys without control groups.)
OWN_GROUP = """mount -t cgroup2 none /sys/fs/cgroup
group=/sys/fs/cgroup/lab-$1; shift
mkdir -p $group; echo $$ >$group/cgroup.procs
exec unshare --cgroup --pid --fork --mount-proc --kill-child "$@"
"""
OWN_ROOT = """umount /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/systemd; mount -t tmpfs none /run/systemd
exec "$@"
"""


class Manager:
    """One systemd on one host; what is run by it is in that host's network."""

    def __init__(self, host: Host, process: subprocess.Popen[bytes]) -> None:
        self.host, self._process = host, process
        self._pid = ""

    def wait(self) -> None:
        """Until it is up."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")

        def systemd() -> str:
            return next((pid for pid in children.read_text().split() if name_of(pid) == "systemd"), "")

        self._pid = poll(systemd, LIMIT_S, "systemd to be started")
        poll(lambda: self.run("is-system-running", check=False).strip() in ("running", "degraded"), LIMIT_S, "systemd")

    def run(self, *words: str, check: bool = True) -> str:
        """systemctl; what it printed."""
        return self.inside("systemctl", *words, check=check)

    def inside(self, *words: str, check: bool = True) -> str:
        """A command among its processes; what it printed."""
        argv = ["nsenter", "-t", self._pid, "-m", "-p", "-n", "--", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(words)} -> {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("show", unit, "-p", name, "--value").strip()


def name_of(pid: str) -> str:
    """What a process runs."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


@contextmanager
def manager(host: Host, units: Mapping[str, str]) -> Iterator[Manager]:
    """A systemd on a host with these units (file name: text; a drop-in's name has its directory). It has no log: of its own
    it would write to the guest's console alone."""
    directory = Path(tempfile.mkdtemp(prefix="units-", dir="/run"))
    stubs = {f"{name}.target": "[Unit]\nDefaultDependencies=no\n" for name in STUBS}
    for name, text in {**stubs, **units}.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    environ = {**os.environ, "SYSTEMD_UNIT_PATH": str(directory), "container": "lab"}
    words = ["sh", "-ec", OWN_GROUP, "sh", host.name, "sh", "-ec", OWN_ROOT, "sh"]
    words += ["/lib/systemd/systemd", "--system", "--unit=lab.target", "--show-status=false", "--log-target=null"]
    process = subprocess.Popen(host.argv(*words), env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    found = Manager(host, process)
    try:
        found.wait()
        yield found
    finally:
        process.kill()
        process.wait(LIMIT_S)


def installed(program: str, log: Path) -> str:
    """A drop-in under which the unit of `program` (a module) finds this checkout instead of an installation, and writes to
    `log`, for there is no journal."""
    if not SEEN.exists():
        SEEN.mkdir()
        subprocess.run(["mount", "--bind", str(ROOT), str(SEEN)], check=True)
        SEEN.chmod(0o755)
    python = SEEN / Path(sys.executable).relative_to(ROOT)
    lines = ["[Service]", f"WorkingDirectory={SEEN}", "ExecStart=", f"ExecStart={python} -m {program}"]
    return "\n".join([*lines, f"StandardOutput=append:{log}", f"StandardError=append:{log}", ""])
