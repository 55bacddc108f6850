"""A list file becomes rows: split, path and label of each image as written, and where they stand.

Whether the images exist and the labels make sense is for `vlp_deploy.data.dataset` to say.
"""

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from vlp_deploy.errors import DataError, MissingExtraError


class Row(NamedTuple):
    """One line of a list, as written; `split` is "" where it names none."""

    where: str
    split: str
    path: str
    label: str


def read_list(file: Path) -> tuple[list[Row], list[str]]:
    """A list file -> its rows, and the labels in the order of their numbers.

    Raises:
        DataError: no list, or a wrong line; the message names both.
        MissingExtraError: a Parquet list without pyarrow.
    """
    suffix = file.suffix.lower()
    if suffix == ".json":
        return _read_coop_split(file)
    if suffix not in _TABLE_READERS:
        raise DataError(
            f"{file} is no list that is known here. Expected a folder, a CoOp split (.json)"
            f" or a table ({', '.join(_TABLE_READERS)})."
        )
    rows = [_row(record, file, where) for where, record in _TABLE_READERS[suffix](file)]
    return rows, sorted({row.label for row in rows})


def read_classnames(file: Path) -> dict[str, str]:
    """Lines `folder name` -> folder: name. A tab parts them, or else the first blank or comma.

    Raises:
        DataError: a line without a name, a folder named twice, or no readable file.
    """
    with _text(file) as stream:
        lines = stream.readlines()
    names: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        separator = "\t" if "\t" in line else next((c for c in line if c in ", "), "\t")
        folder, _, name = (part.strip() for part in line.partition(separator))
        if not name:
            raise DataError(f"{file}, line {number}: expected 'folder name', got {line!r}.")
        if folder in names:
            raise DataError(f"{file}, line {number}: {folder!r} has a name already. Keep one line.")
        names[folder] = name
    return names


def _read_coop_split(file: Path) -> tuple[list[Row], list[str]]:
    """CoOp's split file -> its rows, and class names by label number."""
    try:
        with _text(file) as stream:
            content = json.load(stream)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: not JSON ({error.msg}).") from None
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise DataError(
            f"{file} is no CoOp split. Expected an object with the lists train, val and test;"
            " for one object a line, name the file .jsonl."
        )
    rows = []
    names: dict[int, str] = {}
    for split, entries in content.items():
        for number, entry in enumerate(entries):
            where = f"{split}[{number}]"
            match entry:
                case [str(path), int(label), str(name)] if type(label) is int:
                    pass
                case _:
                    raise DataError(
                        f"{file}, {where}: expected [path, label number, class name],"
                        f" got {entry!r}."
                    )
            if names.setdefault(label, name) != name:
                raise DataError(
                    f"{file}, {where}: label {label} is {name!r} here and {names[label]!r} before."
                    " One label has one class name."
                )
            rows.append(Row(where, split, path, name))
    if sorted(names) != list(range(len(names))):
        absent = next(label for label in range(len(names)) if label not in names)
        raise DataError(
            f"{file}: labels must count 0, 1, 2, ...; found {len(names)} labels from {min(names)}"
            f" to {max(names)} without {absent}. Renumber them."
        )
    return rows, [names[label] for label in range(len(names))]


@contextmanager
def _text(file: Path) -> Iterator[TextIO]:
    """A UTF-8 file, with a byte order mark or without, read so that errors name it."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error


_Records = Iterator[tuple[str, dict[str, Any]]]  # where it stands, column -> value


def _row(record: Mapping[str, Any], file: Path, where: str) -> Row:
    path, label, split = record["path"], record["label"], record.get("split")
    if type(label) is int:
        label = str(label)
    for column, value in (("path", path), ("label", label), ("split", split or "-")):
        if not isinstance(value, str) or not value:
            raise DataError(f"{file}, {where}: {column} is {value!r}. Expected text.")
    return Row(where, split or "", path, label)


def _read_csv(file: Path) -> _Records:
    with _text(file) as stream:
        table = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        try:
            _check_columns(table.fieldnames or (), file)
            for record in table:
                where = f"line {table.line_num}"
                if None in record:
                    raise DataError(
                        f"{file}, {where}: more fields than the header has."
                        " Quote fields with commas."
                    )
                yield where, record
        except csv.Error as error:
            raise DataError(f"{file}, line {table.line_num}: {error}.") from None


def _read_jsonl(file: Path) -> _Records:
    with _text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{file}, line {number}: not JSON ({error.msg}).") from None
            if not isinstance(record, dict):
                raise DataError(
                    f"{file}, line {number}: expected an object, got {line.strip()[:60]}."
                )
            _check_columns(record, file)
            yield f"line {number}", record


def _read_parquet(file: Path) -> _Records:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("Reading Parquet", needs="pyarrow", extra="parquet") from None
    try:
        table = parquet.read_table(file)
    except (ValueError, OSError) as error:  # pyarrow's own errors are among them
        raise DataError(f"{file} is no readable Parquet file: {error}") from None
    _check_columns(table.column_names, file)
    wanted = [name for name in ("path", "label", "split") if name in table.column_names]
    for number, record in enumerate(table.select(wanted).to_pylist()):
        yield f"row {number}", record


_TABLE_READERS: dict[str, Callable[[Path], _Records]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _check_columns(found: Iterable[str], file: Path) -> None:
    found = list(found)
    absent = [name for name in ("path", "label") if name not in found]
    if absent:
        raise DataError(
            f"{file} has no column {', '.join(absent)}. Expected path and label (and, if wanted,"
            f" split); found {', '.join(found) or 'none'}."
        )
