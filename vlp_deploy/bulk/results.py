"""From answers to bytes and back: a table to read, or JSON lines, CSV and records for programs.

One line for every input. A path that is not UTF-8 is written with replacement characters, and
exactly, in base64, as `path_b64`.
"""

import base64
import csv
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from vlp_deploy.answers import Answer, Failure

DIGITS = 6  # of a probability: more would differ between batch sizes
CSV_COLUMNS = ("path", "label", "probability", "error", "top", "path_b64")


class Row(NamedTuple):
    """What a written answer tells again: the input's name, exactly, and its label if it has one."""

    name: str | None
    label: str | None
    probability: float

    @property
    def failed(self) -> bool:
        """Whether there is no prediction."""
        return self.label is None


@dataclass(frozen=True, kw_only=True)
class LineFormat:
    """How an answer becomes a line and, for those that are read again, a line a Row.

    `decode` raises ValueError for what is no such line.
    """

    encode: Callable[[Answer], bytes]
    decode: Callable[[bytes], Row]
    heading: bytes = b""


def record(answer: Answer) -> dict[str, Any]:
    """`{"path","label","probability","top"}` or `{"path","error"}`; also `path_b64` if needed."""
    found: dict[str, Any] = {"path": None if answer.path is None else _utf8(answer.path)}
    if isinstance(answer, Failure):
        found["error"] = _utf8(answer.error)
    else:
        found["label"] = answer.label
        found["probability"] = round(answer.probability, DIGITS)
        found["top"] = [
            {"label": c.label, "probability": round(c.probability, DIGITS)} for c in answer.top
        ]
    if answer.path is not None and found["path"] != answer.path:
        found["path_b64"] = _base64(answer.path)
    return found


def row_of(answer: Answer) -> Row:
    """What will be read again of an answer."""
    if isinstance(answer, Failure):
        return Row(answer.path, None, 0.0)
    return Row(answer.path, answer.label, answer.probability)


class RowFields(msgspec.Struct):
    """The fields of a written record that make its Row; others are passed over."""

    path: str | None
    label: str | None = None
    probability: float | None = None
    error: str | None = None
    path_b64: str | None = None

    def row(self) -> Row:
        """Raises ValueError if the name is not what base64 gives."""
        name = self.path
        if self.path_b64:
            name = os.fsdecode(base64.b64decode(self.path_b64, validate=True))
        return Row(name, None if self.error else self.label or "", self.probability or 0.0)


def _table_line(answer: Answer) -> bytes:
    """For people: label, probability, path and the runners-up."""
    path = _printable(answer.path or "-")
    if isinstance(answer, Failure):
        line = f"{'error':<32}  {path}: {_printable(answer.error)}"
    else:
        runners_up = ", ".join(f"{c.label} {c.probability:.1%}" for c in answer.top[1:])
        also = f"  ({_printable(runners_up)})" if runners_up else ""
        line = f"{_printable(answer.label):<24}{answer.probability:>8.1%}  {path}{also}"
    return line.encode() + b"\n"


def _no_row(line: bytes) -> Row:
    raise ValueError("a table is for people; it cannot be read again")


def _json_line(answer: Answer) -> bytes:
    return msgspec.json.encode(record(answer)) + b"\n"


_JSON_DECODER = msgspec.json.Decoder(RowFields)


def _json_row(line: bytes) -> Row:
    return _JSON_DECODER.decode(line).row()  # msgspec's errors are ValueErrors


def _csv_line(answer: Answer) -> bytes:
    """`top` holds `label probability` pairs, separated by `|`.

    All fields are quoted. Control characters are written as in Python, a line break as `\\n`; a
    path that holds some is also given exactly, as `path_b64`.
    """
    found = record(answer)
    top = "|".join(f"{c['label']} {c['probability']}" for c in found.get("top", ()))
    fields = ["" if found.get(name) is None else str(found[name]) for name in CSV_COLUMNS[:4]]
    altered = answer.path is not None and _without_controls(fields[0]) != answer.path
    return _csv_row([*fields, top, _base64(answer.path or "") if altered else ""])


def _csv_row(fields: list[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(map(_without_controls, fields))
    return text.getvalue().encode()


def _csv_row_of(line: bytes) -> Row:
    try:
        (fields,) = csv.reader([line.decode()], strict=True)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if len(fields) != len(CSV_COLUMNS):
        raise ValueError(f"{len(fields)} fields; expected {len(CSV_COLUMNS)}")
    path, label, probability, reason, _, path_b64 = fields
    return RowFields(path, label, float(probability or 0), reason, path_b64).row()


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


LINE_FORMATS: dict[str, LineFormat] = {
    "table": LineFormat(encode=_table_line, decode=_no_row),
    "jsonl": LineFormat(encode=_json_line, decode=_json_row),
    "csv": LineFormat(encode=_csv_line, decode=_csv_row_of, heading=_csv_row(list(CSV_COLUMNS))),
}
