"""The bytes that other programs read."""

import base64
import csv
import io
import json
import os
import re
from dataclasses import replace

import pytest

from vlp_deploy.answers import Candidate, Failure, Prediction
from vlp_deploy.bulk.results import LINE_FORMATS, row_of

GOOD = Prediction(
    path="a b/ü.jpg",
    label="red panda",
    probability=0.75,
    logit=12.5,
    top=(Candidate("red panda", 0.75), Candidate('cat, "big"', 0.2499996)),
)
BAD = Failure(path="b.jpg", error="the file is empty")
REJECTED = replace(GOOD, label=None, probability=0.3, top=(Candidate("red panda", 0.3),))
SEVERAL = replace(GOOD, labels=("red panda", r"a|b \| c"))
WITHOUT = replace(REJECTED, labels=())
ODD = Failure(path=os.fsdecode(b"\xff\xe9.jpg"), error="there is no such file")
PATHLESS = Prediction(path=None, label="x", probability=1.0, logit=1.0, top=(Candidate("x", 1.0),))


def written(format: str, *answers: Prediction | Failure) -> bytes:
    lines = LINE_FORMATS[format]
    return lines.heading + b"".join(map(lines.encode, answers))


def test_json_lines_are_exactly_as_specified() -> None:
    assert written("jsonl", GOOD, BAD).decode() == (
        '{"path":"a b/ü.jpg","label":"red panda","probability":0.75,"top":['
        '{"label":"red panda","probability":0.75},'
        '{"label":"cat, \\"big\\"","probability":0.25}]}\n'
        '{"path":"b.jpg","error":"the file is empty"}\n'
    )


def test_image_of_no_class_has_neither_label_nor_error() -> None:
    assert json.loads(written("jsonl", REJECTED)) == {
        "path": "a b/ü.jpg",
        "label": None,
        "probability": 0.3,
        "top": [{"label": "red panda", "probability": 0.3}],
    }
    (row,) = csv.DictReader(io.StringIO(written("csv", REJECTED).decode()))
    assert (row["label"], row["error"], row["probability"]) == ("", "", "0.3")
    assert re.sub(" +", " ", written("table", REJECTED).decode()) == (
        "(none of these) 30.0% a b/ü.jpg (red panda 30.0%)\n"
    )


def test_several_labels_are_all_told() -> None:
    assert json.loads(written("jsonl", SEVERAL))["labels"] == list(SEVERAL.labels or ())
    assert json.loads(written("jsonl", WITHOUT))["labels"] == []
    (row,) = csv.DictReader(io.StringIO(written("csv", SEVERAL).decode()))
    assert row["labels"] == r"red panda|a\|b \\\| c"
    assert "red panda, a|b" in written("table", SEVERAL).decode()


def test_path_that_is_not_utf8_can_be_recovered() -> None:
    record = json.loads(written("jsonl", ODD))

    assert record["path"] == "\ufffd\ufffd.jpg"
    assert base64.b64decode(record["path_b64"]) == b"\xff\xe9.jpg"
    assert list(record) == ["path", "error", "path_b64"]


def test_json_line_of_an_image_without_a_path() -> None:
    assert json.loads(written("jsonl", PATHLESS))["path"] is None


def test_csv_has_the_same_columns_for_all() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", GOOD, BAD, ODD).decode())))

    assert rows[0] == {
        "path": "a b/ü.jpg",
        "label": "red panda",
        "probability": "0.75",
        "error": "",
        "top": 'red panda 0.75|cat, "big" 0.25',
        "path_b64": "",
        "labels": "",
    }
    assert (rows[1]["label"], rows[1]["error"]) == ("", "the file is empty")
    assert base64.b64decode(rows[2]["path_b64"]) == b"\xff\xe9.jpg"


def test_csv_escapes_line_breaks_and_keeps_the_exact_path() -> None:
    path = 'two\nlines "and" \r, comma.jpg'

    (row,) = csv.DictReader(io.StringIO(written("csv", Failure(path=path, error="x")).decode()))

    assert row["path"] == r'two\nlines "and" \r, comma.jpg'
    assert base64.b64decode(row["path_b64"]).decode() == path


def test_csv_quotes_every_field() -> None:
    assert written("csv", BAD).decode().splitlines() == [
        '"path","label","probability","error","top","path_b64","labels"',
        '"b.jpg","","","the file is empty","","",""',
    ]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_lines_tell_which_input_they_answer(format: str) -> None:
    nasty = Failure(path='a\nb\x1b[2J\r\u202e,".jpg', error="it is locked")

    answers = (GOOD, nasty, ODD, REJECTED, SEVERAL, WITHOUT)

    rows = [LINE_FORMATS[format].decode(LINE_FORMATS[format].encode(a)) for a in answers]

    good, none = (GOOD.path, (GOOD.label,), 0.75, False), (GOOD.path, (), 0.3, False)
    failed = [(nasty.path, (), 0, True), (ODD.path, (), 0, True)]
    assert rows == [good, *failed, none, (GOOD.path, SEVERAL.labels, 0.75, False), none]
    assert rows == [row_of(answer) for answer in answers]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_what_is_no_line_is_an_error(format: str) -> None:
    whole = LINE_FORMATS[format].encode(GOOD)
    for line in (whole[:-5], b"\n", b"\0" * 50 + b"\n", b"\xff\n", b"[]\n"):
        with pytest.raises(ValueError, match=r".+"):
            LINE_FORMATS[format].decode(line)


def test_table_has_one_line_an_input() -> None:
    lines = written("table", GOOD, BAD, PATHLESS).decode().splitlines()

    assert [re.sub(" +", " ", line) for line in lines] == [
        'red panda 75.0% a b/ü.jpg (cat, "big" 25.0%)',
        "error b.jpg: the file is empty",
        "x 100.0% -",
    ]


@pytest.mark.parametrize("format", ["table", "jsonl", "csv"])
def test_names_cannot_break_lines_or_drive_the_terminal(format: str) -> None:
    nasty = Failure(path="a\nb\x1b[2J\r\u202e.jpg", error="bad\n\x1b[31m")

    output = written(format, nasty).removeprefix(written(format))  # without CSV's header

    assert output.count(b"\n") == 1
    assert b"\x1b" not in output
    assert b"\r" not in output
