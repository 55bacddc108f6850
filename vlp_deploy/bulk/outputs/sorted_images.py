"""Images sorted into folders by label, as copies or as symbolic links.

Of several labels each gets the image; those of no class have a folder of their own. Nothing that is
there is ever replaced: a name that is taken by something else becomes `name-2.jpg`. What is there
and the same counts as done, so that a run that is broken off can be continued.
"""

import errno
import filecmp
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.items import Input
from vlp_deploy.bulk.outputs.base import Companion
from vlp_deploy.bulk.reading import source_of
from vlp_deploy.bulk.results import Row
from vlp_deploy.errors import DataError, ImageError
from vlp_deploy.files import new_file, sweep_temporaries

LABEL = "{label}"
NO_LABEL = "none of these"  # the folder's name, numbered if it is a class's, too
MAX_NAME_BYTES = 200  # file systems allow 255, and a number may be added
UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029]")


class SortedImages(Companion):
    """`template` is a folder with LABEL in it. An image that failed is left out.

    Raises DataError where an image cannot be copied or linked.
    """

    def __init__(self, template: str, labels: Sequence[str], *, link: bool) -> None:
        self._place = _link if link else _copy
        names = _folder_names([*labels, NO_LABEL])
        folders = [Path(template.replace(LABEL, name)) for name in names]
        self._folders = dict(zip(labels, folders, strict=False))
        self._no_label = folders[-1]
        self._made: set[Path] = set()

    def take(self, row: Row, image: Input) -> None:
        if row.failed:
            return
        for folder in [self._folders[label] for label in row.labels] or [self._no_label]:
            self._put(row, image, folder)

    def _put(self, row: Row, image: Input, folder: Path) -> None:
        try:
            self._make(folder)
            for name in _names(os.path.basename(row.name or "") or "image"):
                if self._place(image, folder / name):
                    return
        except (OSError, ImageError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"{row.name} cannot be put into {folder}: {reason}") from error

    def _make(self, folder: Path) -> None:
        if folder not in self._made:
            folder.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(folder / "new")
            self._made.add(folder)


def safe_name(text: str) -> str:
    """`text` as the name of one file or folder that is not hidden, as alike as can be."""
    name = UNSAFE.sub("_", text).strip() or "_"
    if name.startswith("."):
        name = "_" + name[1:]
    return os.fsencode(name)[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def searched_around(template: str, inputs: Sequence[Path]) -> Path | None:
    """The input folder, if any, in which the sorted images would lie and be found again."""
    fixed = template.partition(LABEL)[0]
    target = Path(os.path.realpath(fixed if fixed.endswith("/") else os.path.dirname(fixed)))
    folders = (path for path in inputs if path.is_dir())
    return next((path for path in folders if target.is_relative_to(path.resolve())), None)


def _folder_names(labels: Sequence[str]) -> Iterator[str]:
    """A safe name for every label, different ones for different labels, always the same."""
    taken: set[str] = set()
    for label in labels:
        name = next(name for name in _numbered(safe_name(label), "") if name not in taken)
        taken.add(name)
        yield name


def _names(name: str) -> Iterator[str]:
    """Names for a file: its own, then numbered ones."""
    stem, suffix = os.path.splitext(name)
    yield from _numbered(_short(stem, MAX_NAME_BYTES - len(os.fsencode(suffix))), suffix)


def _numbered(stem: str, suffix: str) -> Iterator[str]:
    yield stem + suffix
    number = 2
    while True:
        yield f"{stem}-{number}{suffix}"
        number += 1


def _short(name: str, size: int) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= size else os.fsdecode(encoded[: max(size, 1)])


def _link(image: Input, target: Path) -> bool:
    """Whether `target` is now, or was, a link to the image; False if the name is taken.

    An image in an archive or a table is no file that could be linked to: it is copied.
    """
    source = _source(image)
    if isinstance(source, bytes):
        return _copy(image, target)
    path = os.path.abspath(source)
    try:
        os.symlink(path, target)
    except FileExistsError:
        return target.is_symlink() and os.readlink(target) == path
    return True


def _copy(image: Input, target: Path) -> bool:
    """Whether `target` is now, or was, a file of the image's bytes; False if the name is taken."""
    source = _source(image)
    if os.path.lexists(target):
        return _is_same(source, target)
    try:
        with new_file(target) as file:
            if isinstance(source, bytes):
                file.write(source)
                return True
            with open(source, "rb") as original:
                shutil.copyfileobj(original, file)
                file.flush()
                found = os.fstat(original.fileno())
                os.utime(file.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
    except FileExistsError:  # somebody else was faster
        return _is_same(source, target)
    return True


def _is_same(source: str | bytes, target: Path) -> bool:
    if target.is_symlink() or not target.is_file():
        return False
    if isinstance(source, bytes):
        return target.stat().st_size == len(source) and target.read_bytes() == source
    return filecmp.cmp(source, target)  # of equal size and time it compares no bytes


def _source(image: Input) -> str | bytes:
    """A path or encoded bytes."""
    source = source_of(image) if not isinstance(image, Failure) else None
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    raise OSError(errno.EINVAL, "it is no file")
