"""Files that only we can read, replaced in one step, so that a crash leaves the old one or the new one.

What root makes in the directory of a unit's user (`sudo fusisd cleanup`, `sudo fusis-agent undo`) becomes that user's, or
the service could not start again.

Does not: know what stands in them.
"""

from __future__ import annotations

import os
from pathlib import Path


def open_private(path: Path, flags: int) -> int:
    """A descriptor of the file, made for us alone when absent. Raises OSError, also for a symbolic link."""
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only we can read, in one step. Raises OSError."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(open_private(temporary, os.O_WRONLY), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move(temporary, path)


def move(path: Path, to: Path) -> None:
    """Rename a file of one directory, durably. Raises OSError."""
    os.replace(path, to)
    directory = os.open(to.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
