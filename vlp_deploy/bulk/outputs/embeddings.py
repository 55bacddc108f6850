"""Embeddings beside the answers, row by row: an .npy array, or Parquet parts with their paths.

Of an input that could not be classified the row is NaN (.npy) or null (Parquet). D joint width.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vlp_deploy.answers import Answer, Failure
from vlp_deploy.bulk.outputs.base import Output
from vlp_deploy.bulk.outputs.lock import open_locked
from vlp_deploy.bulk.outputs.parts import PartsFolder
from vlp_deploy.bulk.results import record

MAGIC = b"\x93NUMPY\x01\x00"
EMBEDDING_SUFFIXES = (".npy", ".parquet")
HEADER_BYTES = 128  # room for any number of rows, so that it can be written last


class NpyFile(Output):
    """float32 (inputs, D). While it grows its header says that there are no rows."""

    def __init__(self, path: Path, width: int) -> None:
        self._width = width
        self._file = open_locked(path)
        self._written = 0

    def rows(self) -> int:
        return max(0, self._file.seek(0, os.SEEK_END) - HEADER_BYTES) // (4 * self._width)

    def keep(self, rows: int) -> None:
        self._file.seek(0)
        self._file.write(_npy_header(0, self._width))
        self._file.seek(HEADER_BYTES + 4 * self._width * rows)
        self._file.truncate()
        self._written = rows

    def write(self, answer: Answer) -> None:
        row = np.full(self._width, np.nan, "<f4")
        if not isinstance(answer, Failure):
            row[:] = answer.embedding
        self._file.write(row.tobytes())
        self._file.flush()
        self._written += 1

    def finish(self) -> None:
        self._file.seek(0)
        self._file.write(_npy_header(self._written, self._width))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class EmbeddingParts(PartsFolder):
    """Columns path, path_b64 and embedding, a list of D float32."""

    def __init__(self, path: Path, width: int, *, step: int) -> None:
        self._width = width
        super().__init__(path, step=step)

    def _make_schema(self, arrow: ModuleType) -> Any:
        vector = arrow.list_(arrow.float32(), self._width)
        return arrow.schema(
            [("path", arrow.string()), ("path_b64", arrow.string()), ("embedding", vector)]
        )

    def _record(self, answer: Answer) -> dict[str, Any]:
        names = record(answer)
        return {
            "path": names["path"],
            "path_b64": names.get("path_b64"),
            "embedding": None if isinstance(answer, Failure) else answer.embedding,
        }


def embedding_output(path: Path, width: int, *, step: int) -> Output:
    """The output that a path's suffix asks for, one of EMBEDDING_SUFFIXES."""
    if path.suffix == ".parquet":
        return EmbeddingParts(path, width, step=step)
    return NpyFile(path, width)


def _npy_header(rows: int, width: int) -> bytes:
    """Version 1.0 of NumPy's file format, padded to HEADER_BYTES."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    room = HEADER_BYTES - len(MAGIC) - 2
    return MAGIC + room.to_bytes(2, "little") + text.ljust(room - 1).encode() + b"\n"
