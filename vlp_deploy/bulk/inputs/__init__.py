"""From what a user names to the images to classify, one after another, in an order that is fixed.

Every input is looked at by its name:

    a folder                    searched to any depth (`folders.py`)
    x.tar, .tar.gz, .tgz, ...   the images in it, as stored; webdataset shards too (`archives.py`)
    x.zip                       the same
    x.parquet                   its rows: images, or paths of images (`tables.py`)
    -                           paths on stdin, one a line, or ending in zero bytes (`lists.py`)
    anything else               an image

Archives and tables count where they are named, not where a folder holds them.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vlp_deploy.bulk.inputs.archives import tar_items, zip_items
from vlp_deploy.bulk.inputs.folders import folder_items
from vlp_deploy.bulk.inputs.lists import listed_paths
from vlp_deploy.bulk.inputs.tables import table_items
from vlp_deploy.bulk.inputs.tally import Tally
from vlp_deploy.bulk.items import Input

STDIN = "-"

READERS: dict[str, Callable[[str, Tally], Iterator[Input]]] = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), tar_items),
    ".zip": zip_items,
    ".parquet": table_items,
}


@dataclass
class Inputs:
    """Iterates over the images, as a path, an Item, or a Failure for what cannot be read.

    `tally.left_out` counts what is no image. Iterating again starts anew, except for stdin.
    """

    paths: Iterable[Path]
    stdin: BinaryIO = field(default_factory=lambda: sys.stdin.buffer)
    tally: Tally = field(default_factory=Tally)

    def __iter__(self) -> Iterator[Input]:
        for path in map(str, self.paths):
            if path == STDIN:
                yield from listed_paths(self.stdin)
            elif os.path.isdir(path):
                yield from folder_items(path, self.tally)
            elif (read := _reader(path)) is not None:
                yield from read(path, self.tally)
            else:
                yield path

    def count(self) -> int | None:
        """How many there are, found by going through them all; None with stdin among them."""
        if any(str(path) == STDIN for path in self.paths):
            return None
        return sum(1 for _ in Inputs(self.paths))


def holds_images(path: str) -> bool:
    """Whether it is an archive or a table, not an image or a folder."""
    return _reader(path) is not None


def _reader(path: str) -> Callable[[str, Tally], Iterator[Input]] | None:
    """The reader of the longest known ending, if there is such a file."""
    name = Path(path).name.lower()
    if not os.path.isfile(path):
        return None
    return next((read for ending, read in READERS.items() if name.endswith(ending)), None)
