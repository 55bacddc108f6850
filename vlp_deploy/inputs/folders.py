"""From the paths that a user names to the files to classify, in an order that never changes.

A path named directly always counts. Within folders, which are searched to any depth, a file counts
if its name ends like an image's, or its first bytes are an image's, or it cannot be looked into (a
link to nothing, a file without permission). Hidden files and folders, links to folders and whatever
else is left out are counted. Entries come sorted by their names' bytes.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlp_deploy.classifier import Failure
from vlp_deploy.images import IMAGE_SUFFIXES, has_image_signature

SIGNATURE_BYTES = 16


@dataclass
class ImageFinder:
    """Iterates over the files; `left_out` counts those that are no images."""

    paths: Iterable[Path]
    left_out: int = 0

    def __iter__(self) -> Iterator[str | Failure]:
        """Paths as strings; a Failure for a folder that cannot be read."""
        for path in map(os.fspath, self.paths):
            if os.path.isdir(path):
                yield from self._search(path)
            else:
                yield path

    def _search(self, folder: str) -> Iterator[str | Failure]:
        pending: list[str | os.DirEntry[str]] = [folder]  # next one last
        while pending:
            entry = pending.pop()
            if isinstance(entry, str) or entry.is_dir(follow_symlinks=False):
                try:
                    pending += self._entries(os.fspath(entry))
                except OSError as error:
                    reason = f"the folder cannot be read: {error.strerror}"
                    yield Failure(path=os.fspath(entry), error=reason)
            elif _may_be_image(entry):
                yield entry.path
            else:
                self.left_out += 1

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What is in a folder and not hidden, the first one last."""
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: os.fsencode(entry.name), reverse=True)
        seen = [entry for entry in entries if not entry.name.startswith(".")]
        self.left_out += len(entries) - len(seen)
        return seen


def _may_be_image(entry: os.DirEntry[str]) -> bool:
    if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
        return True
    try:
        if not entry.is_file():
            return not entry.is_dir()  # a pipe or a link to nothing counts, a link to a folder not
        with open(entry.path, "rb") as file:
            return has_image_signature(file.read(SIGNATURE_BYTES))
    except OSError:
        return True
