"""From bytes on stdin to paths: one a line, or, as from `find -print0`, each ended by a zero byte.

A list is taken at its word: every entry is one image, and one answer. Empty lines do not count.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

CHUNK_BYTES = 1 << 16


def listed_paths(file: BinaryIO) -> Iterator[str]:
    """Paths as they come in. A path holds no zero byte, so the first chunk tells what ends them."""
    read = getattr(file, "read1", file.read)  # what is there, without waiting for more
    rest = read(CHUNK_BYTES)
    ending = b"\0" if b"\0" in rest else b"\n"
    while True:
        *whole, rest = rest.split(ending)
        yield from (os.fsdecode(path) for path in map(_without_return, whole) if path)
        if not (chunk := read(CHUNK_BYTES)):
            break
        rest += chunk
    if last := _without_return(rest):
        yield os.fsdecode(last)


def _without_return(line: bytes) -> bytes:
    """Windows ends lines with two characters."""
    return line.removesuffix(b"\r")
