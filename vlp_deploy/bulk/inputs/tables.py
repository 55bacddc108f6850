"""From a Parquet file to the images in its rows, or at the paths that they name.

Bytes stand in a column `image` (binary, or Hugging Face's struct of `bytes` and `path`) or `bytes`.
Their names come from a column `path`, else from that struct, else they are `file.parquet/ROW`.
Without bytes, `path` names image files, relative to the folder of the Parquet file. An empty cell
is an error of its row.
"""

import importlib
import os
from collections.abc import Iterator
from typing import Any

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.inputs.tally import Tally
from vlp_deploy.bulk.items import Item
from vlp_deploy.errors import DataError, MissingExtraError

ROWS_AT_ONCE = 16
BUFFER_BYTES = 1 << 20
BYTES_COLUMNS = ("image", "bytes")
PATH_COLUMN = "path"


def table_items(file: str, tally: Tally) -> Iterator[Item | Failure]:
    """One input a row, in order; a Failure where the file cannot be read on.

    Raises:
        DataError: there is neither a column of bytes nor one of paths.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("Reading Parquet", needs="pyarrow", extra="parquet") from None
    try:
        with parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False) as table:
            columns = _columns(table.schema_arrow.names, file)
            batches = table.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield _item(row, file, number)
    except (ValueError, OSError) as error:  # pyarrow's own errors are among them
        yield Failure(path=file, error=f"the Parquet file cannot be read on: {error}")


def _columns(found: list[str], file: str) -> list[str]:
    wanted = [name for name in (*BYTES_COLUMNS, PATH_COLUMN) if name in found]
    if not wanted:
        raise DataError(
            f"{file} has no column {', '.join(BYTES_COLUMNS)} or {PATH_COLUMN}; found"
            f" {', '.join(found) or 'none'}. Rename the one that holds the images or their paths"
        )
    return wanted


def _item(row: dict[str, Any], file: str, number: int) -> Item | Failure:
    name, where = row.get(PATH_COLUMN), f"{file}/{number}"
    image = next((row[column] for column in BYTES_COLUMNS if row.get(column) is not None), None)
    if isinstance(image, dict):
        name, image = name or image.get("path"), image.get("bytes")
    if isinstance(image, bytes):
        return Item(name if isinstance(name, str) else where, image)
    if image is None and isinstance(name, str) and name:
        if {*BYTES_COLUMNS} & row.keys():
            return Failure(path=name, error="this row holds no image")
        return Item(name, os.path.join(os.path.dirname(file), name))
    if image is None:
        return Failure(path=where, error="this row holds no image")
    return Failure(path=where, error=f"this row holds {type(image).__name__}, not bytes")
