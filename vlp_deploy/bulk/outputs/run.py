"""A run's outputs, begun anew, continued after it was broken off, or found complete.

On disk an output and the header beside it tell which: an output that is absent or empty, nothing
begun; a header without `finished`, broken off; one with it, complete. A new run deletes old output,
then writes its header, then rows: none ever stands under a header that is not its own.
"""

import errno
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from vlp_deploy.answers import Answer
from vlp_deploy.bulk.items import Input, name_of
from vlp_deploy.bulk.outputs.base import Companion, Output, common_rows
from vlp_deploy.bulk.outputs.embeddings import embedding_output
from vlp_deploy.bulk.outputs.header import (
    Finished,
    RunHeader,
    differences,
    header_path,
    read_header,
    write_header,
)
from vlp_deploy.bulk.outputs.lines import LineFile, LineStream
from vlp_deploy.bulk.outputs.lock import lock
from vlp_deploy.bulk.outputs.parts import AnswerParts
from vlp_deploy.bulk.results import LINE_FORMATS, Row, row_of
from vlp_deploy.errors import DataError


class Run:
    """Writes every answer to all outputs; counts them, those of the run before included."""

    def __init__(
        self, outputs: list[Output], *, finished: Finished | None = None, saved: "_Saved | None"
    ) -> None:
        """Use `saved` or `streamed`."""
        self._outputs, self._saved = outputs, saved
        self.is_complete = finished is not None
        self.rows = finished.inputs if finished else 0
        self.failed = finished.failed if finished else 0
        self.begun = 0  # rows that were there at the start
        self.companions: list[Companion] = []
        self._asked: deque[Input] = deque()  # inputs without an answer yet, for the companions

    @classmethod
    def saved(cls, path: Path, header: RunHeader, *, width: int, force: bool) -> "Run":
        """A run whose answers go to a file or folder, under a header, and can be continued.

        `width` is that of embeddings. Raises DataError if `path` holds something else, or answers
        to another question, unless `force` has it deleted; OSError if it cannot be written.
        """
        if path.is_dir() and header.format != "parquet":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        stored = None if force else _continuable(path, header)
        if stored is None:
            _delete(path, force=force)
        with ExitStack() as on_error:
            main = _main_output(path, header)
            on_error.callback(main.close)
            outputs = [*_embeddings(header, width, force=force, keep=stored), main]
            finished = stored.finished if stored else None
            if finished and any(output.rows() != finished.inputs for output in outputs):
                finished = None  # somebody cut them
            if stored is None:
                write_header(path, header)
            on_error.pop_all()
        return cls(outputs, finished=finished, saved=_Saved(path, header, main))

    @classmethod
    def streamed(cls, file: BinaryIO, header: RunHeader, *, width: int, force: bool) -> "Run":
        """A run whose answers go to an open file."""
        embeddings = _embeddings(header, width, force=force, keep=None)
        return cls([*embeddings, LineStream(file, LINE_FORMATS[header.format])], saved=None)

    @property
    def can_continue(self) -> bool:
        """Whether a later run can go on where this one is broken off."""
        return self._saved is not None

    def unanswered(self, inputs: Iterator[Input]) -> Iterator[Input]:
        """The inputs behind those whose answers are there; cuts what is not whole.

        Raises DataError if they are other inputs than before.
        """
        # Cut to whole batches: made of the same images, they give the same answers to the last bit.
        rows = common_rows(self._outputs, step=self._saved.header.batch_size) if self._saved else 0
        self.rows = self.failed = 0
        for row in self._saved.main.kept(rows) if self._saved else ():
            self._show(row, self._same(row, next(inputs, None)))
            self._count(row)
        self._go_on_behind(rows)
        return self.remembered(inputs)

    def reopened(self) -> set[str]:
        """The names of all inputs that are answered, in any order; others may be written then."""
        names: set[str] = set()
        rows = 0
        if self._saved:
            write_header(self._saved.path, self._saved.header)  # it may have been complete
            self.is_complete, self.rows, self.failed = False, 0, 0
            rows = self._saved.main.rows()
            for row in self._saved.main.kept(rows):
                name = row.name or ""
                names.add(name)
                self._show(row, name)
                self._count(row)
        self._go_on_behind(rows)
        return names

    def remembered(self, inputs: Iterator[Input]) -> Iterator[Input]:
        """The inputs as they are; the companions will get them with their answers."""
        for given in inputs:
            if self.companions:
                self._asked.append(given)
            yield given

    def _go_on_behind(self, rows: int) -> None:
        for output in self._outputs:
            output.keep(rows)
        self.begun = rows

    def _same(self, row: Row, given: Input | None) -> Input:
        name = None if given is None else name_of(given)
        if given is None or name != row.name:
            now = "there is none now" if given is None else f"it is {name!r} now"
            raise DataError(
                f"the output cannot be continued: input {self.rows + 1:,} was {row.name!r}, and"
                f" {now}. Restore the inputs, or begin anew with --force"
            )
        return given

    def write(self, answer: Answer) -> None:
        """Add a row. With companions, inputs must have come by `unanswered` or `remembered`."""
        row = row_of(answer)
        if self.companions:
            self._show(row, self._asked.popleft())
        for output in self._outputs:
            output.write(answer)
        self._count(row)

    def _show(self, row: Row, image: Input) -> None:
        for companion in self.companions:
            companion.take(row, image)

    def _count(self, row: Row) -> None:
        self.rows += 1
        self.failed += row.failed

    def finish(self) -> None:
        """Say that every input has its answer."""
        for output in self._outputs:
            output.finish()
        for companion in self.companions:
            companion.finish()
        if self._saved:
            finished = Finished(inputs=self.rows, failed=self.failed)
            header = msgspec.structs.replace(self._saved.header, finished=finished)
            write_header(self._saved.path, header)

    def close(self) -> None:
        """Let go of files, finished or not."""
        for output in self._outputs:
            output.close()


@dataclass(frozen=True)
class _Saved:
    """What lets a run be continued."""

    path: Path
    header: RunHeader
    main: LineFile | AnswerParts


def _continuable(path: Path, header: RunHeader) -> RunHeader | None:
    """The stored header, or None if nothing is there. Raises DataError if it does not fit."""
    if _is_empty(path):
        return None
    if (stored := read_header(path)) is None:
        raise DataError(
            f"{path} is there already, without the header ({header_path(path).name}) that a run"
            " leaves to be continued. Name another --output, or replace it with --force"
        )
    if different := differences(stored, header):
        raise DataError(
            f"{path} holds answers to another question: {'; '.join(different)}."
            " Name another --output, or replace it with --force"
        )
    return stored


def _is_empty(path: Path) -> bool:
    if path.is_dir():
        return not any(path.iterdir())
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)


def _delete(path: Path, *, force: bool) -> None:
    if not force and not _is_empty(path):
        raise DataError(f"{path} is there already. Name another file, or replace it with --force")
    if not path.exists():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        lock(handle, path)
        if path.is_dir():
            for part in path.glob("part-*.parquet"):
                part.unlink()
        else:
            path.unlink()
    finally:
        os.close(handle)


def _main_output(path: Path, header: RunHeader) -> LineFile | AnswerParts:
    if header.format == "parquet":
        return AnswerParts(path, step=header.batch_size)
    return LineFile(path, LINE_FORMATS[header.format])


def _embeddings(
    header: RunHeader, width: int, *, force: bool, keep: RunHeader | None
) -> list[Output]:
    """The output of embeddings, if they are wanted: new, or, to `keep`, that of the same run."""
    if header.embeddings is None:
        return []
    path = Path(header.embeddings)
    if keep is None:
        _delete(path, force=force)
    return [embedding_output(path, width, step=header.batch_size)]
