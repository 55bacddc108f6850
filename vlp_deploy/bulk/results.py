"""From answers to bytes and back: a table to read, or JSON lines, CSV and records for programs.

One line for every input: an error, or a label; neither, where the image is of none of the classes.
A path that is not UTF-8 is written with replacement characters, and exactly, in base64, as
`path_b64`.
"""

import base64
import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from vlp_deploy.answers import Answer, Failure

DIGITS = 6  # of a probability: more would differ between batch sizes
CSV_COLUMNS = ("path", "label", "probability", "error", "top", "path_b64", "labels")
NONE_OF_THESE = "(none of these)"


class Row(NamedTuple):
    """What a written answer tells again: the input's name, exactly, and its labels, best first.

    There is none where the image is of none of the classes, or where there is no prediction.
    """

    name: str | None
    labels: tuple[str, ...]
    probability: float
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class LineFormat:
    """How an answer becomes a line and, for those that are read again, a line a Row.

    `decode` raises ValueError for what is no such line.
    """

    encode: Callable[[Answer], bytes]
    decode: Callable[[bytes], Row]
    heading: bytes = b""


def record(answer: Answer) -> dict[str, Any]:
    """`{"path","label","probability","top"}` or `{"path","error"}`; also `path_b64` if needed.

    `label` is None for an image of none of the classes; `labels` is there where several may be.
    """
    found: dict[str, Any] = {"path": None if answer.path is None else _utf8(answer.path)}
    if isinstance(answer, Failure):
        found["error"] = _utf8(answer.error)
    else:
        found["label"] = answer.label
        if answer.labels is not None:
            found["labels"] = answer.labels
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
        return Row(answer.path, (), 0.0, failed=True)
    return Row(answer.path, _all_labels(answer.label, answer.labels), answer.probability)


def _all_labels(label: str | None, labels: Sequence[str] | None) -> tuple[str, ...]:
    """`labels` where several may be, else the one that there is."""
    return tuple(labels or ((label,) if label else ()))


class RowFields(msgspec.Struct):
    """The fields of a written record that make its Row; others are passed over."""

    path: str | None
    label: str | None = None
    probability: float | None = None
    error: str | None = None
    path_b64: str | None = None
    labels: tuple[str, ...] | None = None

    def row(self) -> Row:
        """Raises ValueError if the name is not what base64 gives."""
        name = self.path
        if self.path_b64:
            name = os.fsdecode(base64.b64decode(self.path_b64, validate=True))
        labels = _all_labels(self.label, self.labels)
        return Row(name, labels, self.probability or 0.0, failed=bool(self.error))


def _table_line(answer: Answer) -> bytes:
    """For people: label, probability, path and the runners-up."""
    path = _printable(answer.path or "-")
    if isinstance(answer, Failure):
        line = f"{'error':<32}  {path}: {_printable(answer.error)}"
    else:
        labels = row_of(answer).labels
        others = [f"{c.label} {c.probability:.1%}" for c in answer.top if c.label not in labels]
        also = f"  ({_printable(', '.join(others))})" if others else ""
        shown = _printable(", ".join(labels) or NONE_OF_THESE)
        line = f"{shown:<24}{answer.probability:>8.1%}  {path}{also}"
    return line.encode() + b"\n"


def _no_row(line: bytes) -> Row:
    raise ValueError("a table is for people; it cannot be read again")


def _json_line(answer: Answer) -> bytes:
    return msgspec.json.encode(record(answer)) + b"\n"


_JSON_DECODER = msgspec.json.Decoder(RowFields)


def _json_row(line: bytes) -> Row:
    return _JSON_DECODER.decode(line).row()  # msgspec's errors are ValueErrors


def _csv_line(answer: Answer) -> bytes:
    r"""`top` holds `label probability` pairs, separated by `|`; so does `labels`, a `|` being `\|`.

    All fields are quoted. Control characters are written as in Python, a line break as `\n`; a
    path that holds some is also given exactly, as `path_b64`.
    """
    found = record(answer)
    top = "|".join(f"{c['label']} {c['probability']}" for c in found.get("top", ()))
    fields = ["" if found.get(name) is None else str(found[name]) for name in CSV_COLUMNS[:4]]
    altered = answer.path is not None and _without_controls(fields[0]) != answer.path
    path_b64 = _base64(answer.path or "") if altered else ""
    return _csv_row([*fields, top, path_b64, _joined(found.get("labels", ()))])


def _joined(labels: Sequence[str]) -> str:
    return "|".join(re.sub(r"[\\|]", r"\\\g<0>", label) for label in labels)


def _parted(text: str) -> tuple[str, ...]:
    parts = re.findall(r"(?:[^\\|]|\\.)+", text)
    return tuple(re.sub(r"\\(.)", r"\1", part) for part in parts)


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
    path, label, probability, reason, _, path_b64, labels = fields
    found = RowFields(path, label, float(probability or 0), reason, path_b64, _parted(labels))
    return found.row()


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
