"""From answers to bytes: a table to read, or JSON lines, CSV and Parquet for programs.

One line for every input. A path that is not UTF-8 is written with replacement characters, and
exactly, in base64, as `path_b64`.
"""

import base64
import csv
import io
import os
import re
from abc import ABC, abstractmethod
from typing import Any, BinaryIO

import msgspec

from vlp_deploy.classifier import Failure, Prediction
from vlp_deploy.errors import MissingExtraError

Answer = Prediction | Failure

DIGITS = 6  # of a probability: more would differ between batch sizes
ROWS_A_GROUP = 10_000


class ResultWriter(ABC):
    """Writes answers to an open file, one call an answer; `close` writes what is left."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @abstractmethod
    def write(self, answer: Answer) -> None:
        """Write one answer."""

    def close(self) -> None:
        """Write the end. The file stays open."""
        self._file.flush()


class TableWriter(ResultWriter):
    """For people: label, probability, path and the runners-up."""

    def write(self, answer: Answer) -> None:
        path = _printable(answer.path or "-")
        if isinstance(answer, Failure):
            line = f"{'error':<32}  {path}: {_printable(answer.error)}"
        else:
            runners_up = ", ".join(f"{c.label} {c.probability:.1%}" for c in answer.top[1:])
            also = f"  ({_printable(runners_up)})" if runners_up else ""
            line = f"{_printable(answer.label):<24}{answer.probability:>8.1%}  {path}{also}"
        self._file.write(line.encode() + b"\n")
        self._file.flush()


class JsonLinesWriter(ResultWriter):
    """`{"path","label","probability","top"}` or `{"path","error"}`."""

    def write(self, answer: Answer) -> None:
        self._file.write(msgspec.json.encode(_record(answer)) + b"\n")
        self._file.flush()


class CsvWriter(ResultWriter):
    """One line an input; `top` holds `label probability` pairs, separated by `|`.

    All fields are quoted. Control characters are written as in Python, a line break as `\\n`; a
    path that holds some is also given exactly, as `path_b64`.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._row(["path", "label", "probability", "error", "top", "path_b64"])

    def write(self, answer: Answer) -> None:
        record = _record(answer)
        top = "|".join(f"{c['label']} {c['probability']}" for c in record.get("top", ()))
        names = ("path", "label", "probability", "error")
        fields = ["" if record.get(name) is None else str(record[name]) for name in names]
        altered = answer.path is not None and _without_controls(fields[0]) != answer.path
        self._row([*fields, top, _base64(answer.path or "") if altered else ""])

    def _row(self, fields: list[str]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(map(_without_controls, fields))
        self._file.write(text.getvalue().encode())
        self._file.flush()


class ParquetWriter(ResultWriter):
    """Columns path, label, probability, error, top (list of label and probability), path_b64."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise MissingExtraError("parquet", needs="pyarrow", extra="parquet") from None
        text, number = pyarrow.string(), pyarrow.float64()
        candidate = pyarrow.struct([("label", text), ("probability", number)])
        self._schema = pyarrow.schema(
            [
                ("path", text),
                ("label", text),
                ("probability", number),
                ("error", text),
                ("top", pyarrow.list_(candidate)),
                ("path_b64", text),
            ]
        )
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, answer: Answer) -> None:
        self._rows.append(_record(answer))
        if len(self._rows) == ROWS_A_GROUP:
            self._write_group()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()
        super().close()

    def _write_group(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


WRITERS: dict[str, type[ResultWriter]] = {
    "table": TableWriter,
    "jsonl": JsonLinesWriter,
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}


def _record(answer: Answer) -> dict[str, Any]:
    record: dict[str, Any] = {"path": None if answer.path is None else _utf8(answer.path)}
    if isinstance(answer, Failure):
        record["error"] = _utf8(answer.error)
    else:
        record["label"] = answer.label
        record["probability"] = round(answer.probability, DIGITS)
        record["top"] = [
            {"label": c.label, "probability": round(c.probability, DIGITS)} for c in answer.top
        ]
    if answer.path is not None and record["path"] != answer.path:
        record["path_b64"] = _base64(answer.path)
    return record


def _base64(path: str) -> str:
    return base64.b64encode(os.fsencode(path)).decode()


def _utf8(text: str) -> str:
    """`text` without the lone surrogates that stand for bytes of a name that is not UTF-8."""
    return os.fsencode(text).decode("utf-8", "replace")


def _without_controls(text: str) -> str:
    """`text` on one line, whatever reads it; letters of all scripts stay."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda c: ascii(c[0])[1:-1], text)


def _printable(text: str) -> str:
    """`text` without anything that would move the cursor of a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
