"""One process at a time writes an output; the kernel lets go of the lock when it dies."""

import fcntl
from pathlib import Path
from typing import BinaryIO

from vlp_deploy.errors import DataError


def open_locked(path: Path) -> BinaryIO:
    """A file to read and write, new if it is not there. Raises DataError if another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "r+b" if path.exists() else "x+b")  # noqa: SIM115  it stays open
    try:
        lock(file.fileno(), path)
    except BaseException:
        file.close()
        raise
    return file


def lock(handle: int, path: Path) -> None:
    """Take the lock of an open file or folder. Raises DataError if another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(
            f"{path} is being written by another process. Wait for it, or name another --output"
        ) from None
