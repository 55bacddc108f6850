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
from vlp_deploy.images import has_image_signature

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".gif",
        ".bmp",
        ".dib",
        ".webp",
        ".tif",
        ".tiff",
        ".avif",
        ".avifs",
        ".heic",
        ".heif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".ico",
        ".qoi",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    ]
)
SIGNATURE_BYTES = 16


@dataclass
class ImageFinder:
    """Iterates over the files; `left_out` counts those that are no images."""

    paths: Iterable[Path]
    left_out: int = 0

    def __iter__(self) -> Iterator[str | Failure]:
        """Paths as strings; a Failure for a folder that cannot be read."""
        for path in self.paths:
            if path.is_dir():
                yield from self._search(os.fspath(path))
            else:
                yield os.fspath(path)

    def _search(self, folder: str) -> Iterator[str | Failure]:
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield Failure(path=folder, error=f"the folder cannot be read: {error.strerror}")
            return
        for entry in entries:
            if entry.name.startswith("."):
                self.left_out += 1
            elif entry.is_dir(follow_symlinks=False):
                yield from self._search(entry.path)
            elif _may_be_image(entry):
                yield entry.path
            else:
                self.left_out += 1


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
