"""One process per state directory: flock(2) on the file `lock` in it, which holds the owner's pid for the message.

The kernel drops the lock with the process, kill -9 included, and children do not inherit it (O_CLOEXEC).
Does not: know what else is in the directory.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fusisd.errors import StartupError
from fusisd.files import open_private


def lock_state(state_dir: Path, program: str = "fusisd") -> int:
    """Make the state directory (0700) when absent and lock it for the life of the process; the lock's descriptor.

    `program` is who is said to hold it. Raises StartupError: held by another, not to be made or written.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = open_private(state_dir / "lock", os.O_RDWR)
    except OSError as error:
        raise StartupError(
            f"cannot use the state directory {state_dir}: {error.strerror};"
            " run as root, or choose another with --state-dir"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StartupError(
            f"another {program} (pid {pid}) uses {state_dir}: stop it, or choose another --state-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
