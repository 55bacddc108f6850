"""Files and folders that appear whole or not at all, and the SHA-256 of what is there.

A temporary lives beside its target, named `.NAME.RANDOM.vlp-tmp`, locked by the process that writes
it. The kernel drops the lock when that process dies, however it dies, so a temporary that can be
locked is rubbish.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".vlp-tmp"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` at `path`: readers see the old file or the whole new one, never a part."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file that becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(path)
    temporary, handle = _locked_temporary(path, _create_file)
    with open(handle, "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Like `atomic_file` for one of many, not synced; FileExistsError if `path` is there by then.

    What was left by a writer that was killed is swept by `sweep_temporaries(path.parent / "new")`.
    """
    temporary, handle = _locked_temporary(path.with_name("new"), _create_file)
    with open(handle, "wb") as file:
        try:
            yield file
            file.flush()
            os.link(temporary, path)  # unlike renaming, it never replaces
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes otherwise.

    With `replace`, an existing target is exchanged in one step; without it, FileExistsError is
    raised, before the work and again at its end if somebody else was faster.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(target)
    if not replace and os.path.lexists(target):
        raise FileExistsError(target)
    staging, lock = _locked_temporary(target, _create_folder)
    try:
        yield staging
        _sync_tree(staging)
        _move_into_place(staging, target, replace=replace)
        _sync_folder(target.parent)
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)  # after an exchange this is the old target


def sweep_temporaries(target: Path) -> None:
    """Delete what killed writers of `target` left beside it; leave living writers alone."""
    for leftover in target.parent.glob(f".{_glob_escape(target.name)}.*{TEMPORARY_SUFFIX}"):
        try:
            handle = os.open(leftover, os.O_RDONLY)
        except OSError:
            continue  # gone already, or not ours to read
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its writer lives
        else:
            _delete(leftover)
        finally:
            os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def _locked_temporary(target: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """A new temporary beside `target`, and the handle that holds its lock.

    Until it is locked it looks like rubbish: if another process swept it, make the next one.
    """
    while True:
        temporary = _temporary_beside(target)
        handle = create(temporary)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), os.stat(temporary)):
                return temporary, handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _create_file(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)


def _create_folder(path: Path) -> int:
    while True:
        path.mkdir()
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # swept already


def _move_into_place(staging: Path, target: Path, *, replace: bool) -> None:
    if not os.path.lexists(target):
        try:
            os.rename(staging, target)
        except OSError as error:  # somebody else was faster since the line above
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(target) from error
            raise
    elif not replace:
        raise FileExistsError(target)
    elif not _exchange(staging, target):
        aside = _temporary_beside(target)
        os.rename(target, aside)
        os.rename(staging, target)
        _delete(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step (Linux renameat2); False where the system or the disk cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
