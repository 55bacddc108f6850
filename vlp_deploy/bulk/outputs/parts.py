"""Rows as a folder of Parquet files, `part-00000.parquet` and on, each renamed into place whole.

All parts but the last have the same number of rows, so that a run that was broken off and continued
leaves the same files as one that was not. Readers of Parquet take the folder for one table.
"""

import math
import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from vlp_deploy.answers import Answer
from vlp_deploy.bulk.outputs.base import Output
from vlp_deploy.bulk.outputs.lock import lock
from vlp_deploy.bulk.results import Row, RowFields, record
from vlp_deploy.errors import DataError, MissingExtraError
from vlp_deploy.files import TEMPORARY_SUFFIX, atomic_file, sweep_temporaries

ROWS_A_PART = 2048


class PartsFolder(Output):
    """Parquet parts of a schema that a subclass knows, their rows a multiple of `step`.

    Raises MissingExtraError without pyarrow, and DataError if another process writes the folder or
    something else is in it.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._rows_a_part = step * math.ceil(ROWS_A_PART / step)
        self._arrow = _pyarrow()
        self._schema = self._make_schema(self._arrow)
        self._path = path
        path.mkdir(parents=True, exist_ok=True)
        self._handle: int | None = os.open(path, os.O_RDONLY)
        lock(self._handle, path)
        self._sweep()
        self._number = 0  # of the part that is being filled
        self._rows: list[dict[str, Any]] = []

    @abstractmethod
    def _make_schema(self, arrow: ModuleType) -> Any:
        """A pyarrow schema."""

    @abstractmethod
    def _record(self, answer: Answer) -> dict[str, Any]:
        """One row, column by column."""

    def rows(self) -> int:
        return sum(self._rows_of(part) for part in self._parts())

    def floor(self, rows: int) -> int:
        return sum(self._rows_of(part) for part in self._parts_within(rows))

    def keep(self, rows: int) -> None:
        kept = self._parts_within(rows)
        for part in self._parts()[len(kept) :]:
            part.unlink()
        self._number = len(kept)
        self._rows = []

    def write(self, answer: Answer) -> None:
        self._rows.append(self._record(answer))
        if len(self._rows) == self._rows_a_part:
            self._write_part()

    def finish(self) -> None:
        if self._rows or not self._number:  # a table without rows has a schema all the same
            self._write_part()

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _write_part(self) -> None:
        table = self._arrow.Table.from_pylist(self._rows, schema=self._schema)
        with atomic_file(self._part(self._number)) as file:
            self._arrow.parquet.write_table(table, file)
        self._number += 1
        self._rows = []

    def _part(self, number: int) -> Path:
        return self._path / f"part-{number:05}.parquet"

    def _parts(self) -> list[Path]:
        """The parts that are there, up to the first that is not."""
        found: list[Path] = []
        while (part := self._part(len(found))).exists():
            found.append(part)
        return found

    def _parts_within(self, rows: int) -> list[Path]:
        """The parts that are full and begin the table, as far as `rows`."""
        full: list[Path] = []
        for part in self._parts():
            is_full = self._rows_of(part) == self._rows_a_part
            if not is_full or (len(full) + 1) * self._rows_a_part > rows:
                break
            full.append(part)
        return full

    def _rows_of(self, part: Path) -> int:
        try:
            return int(self._arrow.parquet.read_metadata(part).num_rows)
        except (ValueError, OSError) as error:  # pyarrow's own errors are among them
            raise DataError(f"{part} is no readable Parquet file: {error}") from error

    def _sweep(self) -> None:
        """Delete what killed writers left."""
        for leftover in self._path.glob(f".part-*{TEMPORARY_SUFFIX}"):
            sweep_temporaries(self._path / leftover.name.split(".")[1])
        parts = {part.name for part in self._parts()}
        if odd := sorted(set(os.listdir(self._path)) - parts):
            raise DataError(
                f"{self._path} holds other files ({', '.join(odd[:3])}). Name a new folder"
            )


class AnswerParts(PartsFolder):
    """Columns path, label, probability, error, top (label and probability), path_b64, labels."""

    def _make_schema(self, arrow: ModuleType) -> Any:
        text, number = arrow.string(), arrow.float64()
        candidate = arrow.struct([("label", text), ("probability", number)])
        return arrow.schema(
            [
                ("path", text),
                ("label", text),
                ("probability", number),
                ("error", text),
                ("top", arrow.list_(candidate)),
                ("path_b64", text),
                ("labels", arrow.list_(text)),
            ]
        )

    def _record(self, answer: Answer) -> dict[str, Any]:
        return record(answer)

    def kept(self, rows: int) -> Iterator[Row]:
        """The first `rows` rows, a number that `floor` gave."""
        for part in self._parts_within(rows):
            columns = list(RowFields.__struct_fields__)
            for found in self._arrow.parquet.read_table(part, columns=columns).to_pylist():
                yield RowFields(**found).row()


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError("parquet", needs="pyarrow", extra="parquet") from None
    return pyarrow  # type: ignore[no-any-return]
