"""An output that was broken off anywhere ends as one that was not; anything else is refused."""

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.bulk.outputs import parts
from vlp_deploy.bulk.outputs.header import RunHeader, header_path
from vlp_deploy.classifier import Classifier
from vlp_deploy.question import Question

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "orange")


@dataclass
class Done:
    """What a run left behind."""

    code: int
    stderr: str


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven pictures, a damaged one, a name that is not UTF-8 and one with a line break."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, colour in enumerate(COLOURS):
        Image.new("RGB", (20, 30), colour).save(folder / f"{index} ü.png")
    os.rename(folder / "3 ü.png", os.fsencode(folder) + b"/3 \xff.png")
    os.rename(folder / "5 ü.png", folder / '5 "\n".png')
    (folder / "4 damaged.png").write_bytes(b"\x89PNG\r\n")
    return folder


@pytest.fixture
def classify(
    images: Path, fake_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """`vlp classify images --bundle …` with one image listed twice."""

    def run(*arguments: object, inputs: tuple[Path, ...] | None = None) -> Done:
        chosen = inputs or (images, images / "0 ü.png")
        code = cli.run(
            [
                "classify",
                *map(str, (*chosen, "--bundle", fake_bundle, "--batch-size", 4, *arguments)),
            ],
        )
        return Done(code, capfd.readouterr().err)

    return run


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_A_PART", 4)


def as_if_broken_off(output: Path) -> None:
    """Take from the header that the run has ended."""
    header = msgspec.json.decode(header_path(output).read_bytes(), type=RunHeader)
    assert header.finished is not None
    unfinished = msgspec.structs.replace(header, finished=None)
    header_path(output).write_bytes(msgspec.json.encode(unfinished))


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_lines_cut_anywhere_are_continued(classify, tmp_path: Path, name: str) -> None:
    output = tmp_path / "run" / name
    assert classify("--output", output).code == 1  # one image is damaged
    whole = everything(output.parent)

    content = whole[name]
    for size in range(0, len(content), 67):  # within letters, names, numbers and the heading too
        as_if_broken_off(output)
        output.write_bytes(content[:size])
        assert classify("--output", output).code == 1
        assert everything(output.parent) == whole, f"cut at byte {size}"


@pytest.mark.parametrize("rest", ["", "part-00001.parquet", "part-00002.parquet"])
def test_parts_that_are_not_there_are_written(classify, tmp_path: Path, rest: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="reads what was written")
    output = tmp_path / "run" / "out.parquet"
    assert classify("--output", output).code == 1
    whole = everything(output.parent)
    as_if_broken_off(output)
    for part in output.iterdir():
        if part.name >= rest:
            part.unlink()
    (output / ".part-00001.parquet.0123456789ab.vlp-tmp").write_bytes(b"killed while writing")

    assert classify("--output", output).code == 1

    assert everything(output.parent) == whole
    rows = parquet.read_table(output).to_pylist()
    assert len(rows) == 9
    assert [row["error"] is not None for row in rows].count(True) == 1


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize(("lines", "rows"), [(2, 5), (6, 3), (8, 8), (0, 1), (9, 0)])
def test_embeddings_and_answers_are_continued_together(
    classify, tmp_path: Path, kind: str, lines: int, rows: int
) -> None:
    output, embeddings = tmp_path / "run" / "out.jsonl", tmp_path / "run" / f"vectors.{kind}"
    command = ("--output", output, "--embeddings", embeddings)
    assert classify(*command).code == 1
    whole = everything(output.parent)
    as_if_broken_off(output)
    output.write_bytes(b"".join(whole["out.jsonl"].splitlines(True)[:lines]) + b'{"path":"\xc3')
    if kind == "npy":
        os.truncate(embeddings, 128 + 16 * 4 * rows + 7)
    else:
        for part in sorted(embeddings.iterdir())[rows // 4 :]:
            part.unlink()

    assert classify(*command).code == 1

    assert everything(output.parent) == whole


def test_embeddings_are_those_of_the_classifier(
    classify, images: Path, fake_bundle: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="reads what was written")
    classify("--embeddings", tmp_path / "e.npy")
    classify("--embeddings", tmp_path / "e.parquet", "--output", tmp_path / "o.jsonl")

    array = np.load(tmp_path / "e.npy")
    table = parquet.read_table(tmp_path / "e.parquet").to_pylist()

    assert (array.dtype, array.shape) == (np.float32, (9, 16))
    failed = [index for index, row in enumerate(table) if row["embedding"] is None]
    assert np.flatnonzero(np.isnan(array).any(axis=1)).tolist() == failed
    assert "damaged" in table[failed[0]]["path"]
    np.testing.assert_array_equal(array[0], np.float32(table[0]["embedding"]))
    np.testing.assert_allclose(np.linalg.norm(np.delete(array, failed, 0), axis=1), 1, atol=1e-6)
    question = Question(with_embeddings=True)
    (answer,) = Classifier.load(fake_bundle).stream([images / "0 ü.png"], question)
    np.testing.assert_array_equal(array[-1], answer.embedding)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
@pytest.mark.parametrize("option", ["--reject", "--multi-label"])
def test_labels_that_are_chosen_are_written_and_continued(
    classify, tmp_path: Path, changed_bundle, name: str, option: str
) -> None:
    if name.endswith("parquet"):
        parquet = pytest.importorskip("pyarrow.parquet", reason="reads what was written")
    bundle = changed_bundle(
        temperature=50.0, reject_threshold=0.27, class_thresholds=(-2.0, 1.0, 0.0, 99.0)
    )
    output, sorted_to = tmp_path / "run" / name, tmp_path / "run" / "sorted" / "{label}"
    common = ("--bundle", bundle, "--output", output, option)
    extras = ("--copy-to", sorted_to, "--html", tmp_path / "run" / "g.html")
    assert classify(*common, *extras).code == 1
    whole = everything(output.parent)
    shutil.rmtree(sorted_to.parent)
    as_if_broken_off(output)
    if name.endswith("parquet"):
        for number in (1, 2):
            (output / f"part-{number:05}.parquet").unlink()
    else:
        output.write_bytes(output.read_bytes()[:-200])

    assert classify(*common, *extras).code == 1

    assert everything(output.parent) == whole
    assert "question: " in classify("--bundle", bundle, "--output", output).stderr
    if name == "out.jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    elif name == "out.parquet":
        rows = parquet.read_table(output).to_pylist()
    else:
        return
    good = [row for row in rows if row.get("error") is None]
    assert {row["label"] is None for row in good} == {True, False}
    labels = {"--reject": lambda row: [row["label"]], "--multi-label": lambda row: row["labels"]}
    under = {
        f"sorted/{label or 'none of these'}/{Path(row['path']).name}"
        for row in good
        for label in labels[option](row) or [None]
    }
    found = {path for path in whole if path.startswith("sorted/")}
    assert {os.fsencode(path).decode("utf-8", "replace") for path in found} == under
    if option == "--multi-label":
        assert all(row["label"] == next(iter(row["labels"]), None) for row in good)
        assert max(len(row["labels"]) for row in good) > 1


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_complete_output_is_left_alone(classify, tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="writes the file")
    output = tmp_path / "run" / name
    classify("--output", output)
    before = everything(output.parent)

    again = classify("--output", output)

    assert again.code == 1  # as one input had failed
    assert again.stderr == (
        "vlp: the output is complete already: 9 inputs, 1 failed; --force begins anew\n"
    )
    assert everything(output.parent) == before


def test_interrupted_run_says_how_to_go_on(
    classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    classify("--output", whole)
    stream = Classifier.stream

    def interrupted(*arguments, **options):
        yield from itertools.islice(stream(*arguments, **options), 6)
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "stream", interrupted)
    done = classify("--output", output)
    monkeypatch.undo()

    assert done.code == 130
    assert "6 inputs are answered; the same command goes on from there" in done.stderr
    assert classify("--output", output).code == 1
    assert output.read_bytes() == whole.read_bytes()


def test_complete_output_that_was_cut_is_continued(classify, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    classify("--output", output)
    whole = output.read_bytes()
    output.write_bytes(whole[:-30])

    done = classify("--output", output)

    assert output.read_bytes() == whole
    assert done.stderr == "vlp: 9 inputs, 1 failed, 8 were answered before\n"


def test_force_begins_anew(classify, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("something of somebody else's\n")
    assert "without the header (out.jsonl.header.json)" in classify("--output", output).stderr

    assert classify("--output", output, "--force").code == 1
    first = output.read_bytes()
    assert classify("--output", output, "--force", "--top-k", "1").code == 1

    assert len(first.splitlines()) == 9
    assert all(
        len(json.loads(line).get("top", "1")) == 1 for line in output.read_text().splitlines()
    )


def test_empty_file_is_no_output_yet(classify, tmp_path: Path) -> None:
    (output := tmp_path / "out.csv").touch()  # as mktemp makes it

    assert classify("--output", output).code == 1
    assert len(output.read_bytes().splitlines()) == 10


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--top-k", "2"], "top_k was 5 and is 2"),
        (["--batch-size", "5"], "batch_size was 4 and is 5"),
        (["--exact-decode"], "jpeg was scaled and is exact"),
        (["--max-pixels", "7"], "max_pixels was 178956970 and is 7"),
        (["--reject-below", "0.5"], "reject_below was the default and is 0.5"),
        (["--timeout", "0"], "seconds was 60.0 and is None"),
        (["--classes", "{other}"], "classes was the default and is 2 new ones"),
        (["--embeddings", "{embeddings}"], "embeddings was the default and is "),
        (["--format", "csv"], "format was jsonl and is csv"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_options_are_refused(
    classify, tmp_path: Path, options: list[str], difference: str, finished: bool
) -> None:
    (tmp_path / "other.txt").write_text("cat\ndog\n")
    names = {"other": tmp_path / "other.txt", "embeddings": tmp_path / "x.npy"}
    output = tmp_path / "out.jsonl"
    classify("--output", output)
    if not finished:
        as_if_broken_off(output)
    before = output.read_bytes()

    done = classify("--output", output, *(option.format_map(names) for option in options))

    assert done.code == 1
    assert "holds answers to another question" in done.stderr
    assert difference in done.stderr
    assert output.read_bytes() == before


def test_other_classes_and_bundles_are_refused(
    classify, tmp_path: Path, fake_bundle: Path, changed_bundle
) -> None:
    classes, output = tmp_path / "classes.txt", tmp_path / "out.jsonl"
    command = ("--output", output, "--classes", classes)
    classes.write_text("cat\ndog\n")
    classify(*command)
    for text, difference in (
        ("cat\nDog\n", "number 2 of classes was ['dog'] and is ['Dog']"),
        ("cat\tkitty\ndog\n", "number 1 of classes was ['cat'] and is ['cat', 'kitty']"),
        ("cat\n", "there were 2 classes and are 1"),
    ):
        classes.write_text(text)
        assert difference in classify(*command).stderr
    classes.write_text("cat\ndog\n")
    assert "templates was the default" in classify(*command, "--template", "a {}").stderr

    other = changed_bundle(temperature=2.0)
    assert "bundle was " in classify(*command, "--bundle", other).stderr


def test_other_inputs_are_refused_where_they_differ(classify, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    classify("--output", output)
    assert "there were 2 inputs and are 1" in (
        classify("--output", output, inputs=(images,)).stderr
    )
    as_if_broken_off(output)
    output.write_bytes(b"".join(output.read_bytes().splitlines(True)[:4]))
    before = output.read_bytes()

    shutil.copy(images / "0 ü.png", images / "1 a.png")
    added = classify("--output", output)
    (images / "1 a.png").unlink()
    (images / "2 ü.png").unlink()
    removed = classify("--output", output)

    for done, place in ((added, "input 2 was '"), (removed, "input 3 was '")):
        assert done.code == 1
        assert "the output cannot be continued: " + place in done.stderr
    assert output.read_bytes() == before


def test_damaged_rows_and_headers_are_refused(classify, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    classify("--output", output)
    as_if_broken_off(output)
    lines = output.read_bytes().splitlines(True)
    output.write_bytes(lines[0] + b"\0\0\0\n" + b"".join(lines[2:]))
    assert "row 2 cannot be read" in classify("--output", output).stderr

    header_path(output).write_bytes(b"{}")
    assert "is no header of this version" in classify("--output", output).stderr


def test_embeddings_of_somebody_else_are_left_alone(classify, tmp_path: Path) -> None:
    output, embeddings = tmp_path / "out.csv", tmp_path / "vectors.npy"
    embeddings.write_bytes(b"mine")
    for options in ([], ["--output", output], ["--format", "csv"]):
        done = classify("--embeddings", embeddings, *options)
        assert done.code == 1
        assert f"{embeddings} is there already" in done.stderr
    assert embeddings.read_bytes() == b"mine"

    assert classify("--embeddings", embeddings, "--output", output, "--force").code == 1
    assert np.load(embeddings).shape == (9, 16)


def test_output_that_another_process_writes_is_left_alone(classify, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with open(output, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        for options in ([], ["--force"]):
            done = classify("--output", output, *options)
            assert done.code == 1
            assert "being written by another process" in done.stderr

    assert not header_path(output).exists()


def test_folder_with_other_files_is_no_parquet_output(classify, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the writer needs it")
    (folder := tmp_path / "out.parquet").mkdir()
    (folder / "mine.txt").write_text("keep me")

    for options, complaint in (([], "without the header"), (["--force"], "(mine.txt)")):
        done = classify("--output", folder, *options)
        assert done.code == 1
        assert complaint in done.stderr
    assert os.listdir(folder) == ["mine.txt"]


def test_header_says_how_pictures_were_decoded(classify, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    classify("--output", output, "--exact-decode", "--max-memory", "500")

    header = json.loads(header_path(output).read_bytes())

    assert header["decoding"] == {
        "jpeg": "exact",
        "exif_transpose": True,
        "background": [255, 255, 255],
        "icc_profiles": "ignored",
        "animations": "first frame",
        "max_pixels": 178_956_970,
        "max_bytes": 500_000_000,
        "seconds": 60.0,
    }
    assert header["finished"] == {"inputs": 9, "failed": 1}
