"""Answers as lines: to a stream as they come, or to a file that a later run can continue.

A line is whole if it ends in a line break: no field holds one. What follows the last line break was
torn by a kill, perhaps within a letter, and is cut.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vlp_deploy.answers import Answer
from vlp_deploy.bulk.outputs.base import Output
from vlp_deploy.bulk.outputs.lock import open_locked
from vlp_deploy.bulk.results import LineFormat, Row
from vlp_deploy.errors import DataError

CHUNK_BYTES = 1 << 20


class LineStream(Output):
    """Lines to an open file, a pipe or stdout, which stays open."""

    def __init__(self, file: BinaryIO, format: LineFormat) -> None:
        self._file, self._format = file, format
        file.write(format.heading)

    def write(self, answer: Answer) -> None:
        self._file.write(self._format.encode(answer))
        self._file.flush()

    def finish(self) -> None:
        self._file.flush()


class LineFile(Output):
    """Lines in a file that grows in place. Raises DataError if another process writes it."""

    def __init__(self, path: Path, format: LineFormat) -> None:
        self._path, self._format = path, format
        self._file = open_locked(path)

    def rows(self) -> int:
        self._file.seek(0)
        breaks = 0
        while chunk := self._file.read(CHUNK_BYTES):
            breaks += chunk.count(b"\n")
        return max(0, breaks - self._format.heading.count(b"\n"))

    def kept(self, rows: int) -> Iterator[Row]:
        """The first `rows` rows. Raises DataError for one that is damaged."""
        self._file.seek(0)
        if rows and self._file.readline() != self._format.heading and self._format.heading:
            raise DataError(f"{self._path} does not begin like an output of this version")
        if not self._format.heading:
            self._file.seek(0)
        for number in range(rows):
            try:
                yield self._format.decode(self._file.readline())
            except ValueError as error:
                raise DataError(
                    f"{self._path} is damaged: row {number + 1} cannot be read ({error}). Mend it,"
                    " or begin anew with --force"
                ) from error

    def keep(self, rows: int) -> None:
        self._file.seek(0)
        lines = rows + self._format.heading.count(b"\n") if rows else 0
        for _ in range(lines):
            self._file.readline()
        self._file.truncate()
        if not rows:
            self._file.write(self._format.heading)
            self._file.flush()

    def write(self, answer: Answer) -> None:
        self._file.write(self._format.encode(answer))
        self._file.flush()

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
