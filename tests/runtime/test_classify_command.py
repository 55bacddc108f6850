"""`vlp classify`: what it prints, where, and its exit code."""

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.formats.structures import Coupled

HEAVY = {"torch", "open_clip", "onnx", "vlp_train", "vlp_export"}


@dataclass
class Done:
    """What a run left behind."""

    returncode: int
    stdout: bytes
    stderr: bytes


@pytest.fixture
def classify(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Done]:
    """`vlp classify` within this process, which is faster."""

    def run(*arguments: object) -> Done:
        code = cli.run(["classify", *map(os.fspath, arguments)])
        return Done(code, *capfdbinary.readouterr())

    return run


def classify_process(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "vlp_deploy", "classify", *map(os.fspath, arguments)]
    return subprocess.run(command, capture_output=True, env=environment, timeout=300)


def records(output: bytes) -> list[dict]:
    return [json.loads(line) for line in output.decode().splitlines()]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 30), colour).save(folder / f"{index}.png")
    return folder


def test_torture_folder_gives_one_line_each(
    torture_folder: Path, fake_bundle: Path, odd_images, broken_images
) -> None:
    done = classify_process(torture_folder, "--bundle", fake_bundle, "--format", "jsonl")

    lines = records(done.stdout)
    assert done.returncode == 1
    for part in (torture_folder, torture_folder / "deeper"):
        mine = {Path(r["path"]).name: r for r in lines if Path(r["path"]).parent == part}
        good = {name for name, record in mine.items() if "label" in record}
        assert good == {*odd_images, "good 0.jpg", "good 1.jpg", "good 2.jpg"}
        refused = {name for name, record in mine.items() if "error" in record}
        assert refused == {*broken_images, "dangling.jpg", "pipe.jpg"}
        assert "a link to a file that does not exist" in mine["dangling.jpg"]["error"]
    assert len(lines) == len({record["path"] for record in lines})
    assert lines == sorted(lines, key=lambda record: os.fsencode(record["path"]))
    failed = sum("error" in record for record in lines)
    assert done.stderr.decode() == (
        f"vlp: {len(lines)} inputs, {failed} failed, 4 other files in the folders were left out\n"
    )


def test_good_images_exit_with_zero_and_say_nothing_else(
    classify, images: Path, fake_bundle: Path
) -> None:
    done = classify(images, "--bundle", fake_bundle)

    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split("%")[1].split()[0] for line in lines] == [
        str(images / f"{index}.png") for index in range(3)
    ]


def test_named_files_keep_their_order(classify, images: Path, fake_bundle: Path) -> None:
    paths = [images / "2.png", images / "absent.png", images / "0.png", images / "2.png"]

    done = classify(*paths, "--bundle", fake_bundle, "--format", "jsonl", "--batch-size", "1")

    assert [record["path"] for record in records(done.stdout)] == list(map(str, paths))
    assert done.returncode == 1


def test_json_line_holds_what_was_asked_for(classify, images: Path, fake_bundle: Path) -> None:
    done = classify(images / "0.png", "--bundle", fake_bundle, "--format", "jsonl", "--top-k", "2")

    (record,) = records(done.stdout)
    assert list(record) == ["path", "label", "probability", "top"]
    assert [list(candidate) for candidate in record["top"]] == [["label", "probability"]] * 2
    assert record["top"][0] == {"label": record["label"], "probability": record["probability"]}


def test_new_classes_from_a_file(classify, images: Path, fake_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("red panda\tlesser panda\ntree kangaroo\n")
    common = (images, "--bundle", fake_bundle, "--classes", tmp_path / "new.txt")

    table = classify(*common)
    other = classify(*common, "--format", "jsonl", "--template", "one {}.", "--template", "a {}!")

    assert table.returncode == other.returncode == 0
    assert all(
        {c["label"] for c in record["top"]} == {"red panda", "tree kangaroo"}
        for record in records(other.stdout)
    )


def test_fitted_thresholds_do_not_serve_new_classes(
    classify, images: Path, changed_bundle, tmp_path: Path
) -> None:
    (tmp_path / "new.txt").write_text("cat\ndog\n")
    bundle = changed_bundle(reject_threshold=0.5, class_thresholds=(0.0,) * 4)
    common = (images, "--bundle", bundle, "--classes", tmp_path / "new.txt")

    for option in ("--reject", "--multi-label"):
        done = classify(*common, option, "--output", tmp_path / "out.jsonl")
        assert done.returncode == 1
        assert b"cannot be used with other classes" in done.stderr
        assert not (tmp_path / "out.jsonl").exists()
    done = classify(*common, "--reject-below", "1", "--format", "jsonl")
    assert [record["label"] for record in records(done.stdout)] == [None] * 3
    assert done.returncode == 0


def test_answers_that_depend_on_the_batch_come_with_a_warning(
    classify, images: Path, changed_bundle
) -> None:
    coupled = Coupled(depth=1, context="batch", batch_size=3)

    done = classify(images, "--bundle", changed_bundle(structure=coupled))

    assert b"depends on the 2 other images of its batch" in done.stderr


def test_a_fixed_batch_is_filled_where_images_lack(
    classify, images: Path, fake_bundle: Path, changed_bundle
) -> None:
    Image.new("RGB", (20, 30), "grey").save(images / "3.png")
    (images / "4.png").write_bytes(b"no picture")
    coupled = changed_bundle(structure=Coupled(depth=1, context="batch", batch_size=3))

    done, each = (
        classify(images, "--bundle", bundle, "--format", "jsonl")
        for bundle in (coupled, fake_bundle)
    )

    assert done.returncode == each.returncode == 1  # the last is no picture
    for found, expected in zip(records(done.stdout), records(each.stdout), strict=True):
        assert found.get("label") == expected.get("label")
        assert found.get("error") == expected.get("error")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "out.txt"])
def test_output_is_written_in_the_format_of_its_name(
    classify, images: Path, fake_bundle: Path, tmp_path: Path, name: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="writes the file")
    output = tmp_path / "new folder" / name

    done = classify(images, "--bundle", fake_bundle, "--output", output)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    written = output / "part-00000.parquet" if output.is_dir() else output
    start = {
        "out.jsonl": b'{"path"',
        "out.csv": b'"path","label"',
        "out.parquet": b"PAR1",
        "out.txt": tuple(map(str.encode, ("red", "green", "blue", "grey"))),
    }[name]
    assert written.read_bytes().startswith(start)
    header = [] if name == "out.txt" else [f"{name}.header.json"]  # a table is not read again
    assert sorted(os.listdir(output.parent)) == [name, *header]


def test_nothing_is_written_when_nothing_is_found(
    classify, fake_bundle: Path, tmp_path: Path
) -> None:
    output, empty = tmp_path / "new" / "out.jsonl", tmp_path / "empty"
    empty.mkdir()

    done = classify(empty, "--bundle", fake_bundle, "--output", output)

    assert done.returncode == 1
    assert done.stderr.decode() == f"vlp: there are no images in {empty}\n"
    assert not output.parent.exists()


def test_output_that_cannot_be_written_is_explained(
    classify, images: Path, fake_bundle: Path
) -> None:
    for output, reason in ((images, "Is a directory"), (images / "0.png/x", "File exists")):
        done = classify(images, "--bundle", fake_bundle, "--output", output, "--format", "csv")

        assert done.returncode == 1
        assert done.stderr.decode() == f"vlp: --output {output} cannot be written: {reason}\n"


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_pipe_is_written_and_stays_a_pipe(
    classify, images: Path, fake_bundle: Path, tmp_path: Path, format: str
) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()

    done = classify(images, "--bundle", fake_bundle, "--output", pipe, "--format", format)

    reader.join(timeout=60)
    assert done.returncode == 0
    assert got[0].count(b".png") == 3
    assert pipe.is_fifo()


def test_device_stays_a_device(classify, images: Path, fake_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")

    assert classify(images, "--bundle", fake_bundle, "--output", tmp_path / "null").returncode == 0

    assert (tmp_path / "null").is_symlink()
    assert Path("/dev/null").is_char_device()


def test_output_through_a_link_keeps_the_link(
    classify, images: Path, fake_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")

    classify(images, "--bundle", fake_bundle, "--output", tmp_path / "link.jsonl")

    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_bytes().count(b"\n") == 3


def test_dev_stdout_is_stdout_even_where_that_is_a_file(
    images: Path, fake_bundle: Path, tmp_path: Path
) -> None:
    (log := tmp_path / "log").write_bytes(b"before\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "vlp_deploy", "classify", images, "--bundle", fake_bundle]

    with open(log, "ab") as file:
        subprocess.run(
            [*command, "--output", "/dev/stdout"], stdout=file, env=environment, check=True
        )

    lines = log.read_bytes().splitlines()
    assert lines[0] == b"before"
    assert len(lines) == 4


def test_full_device_is_explained(classify, images: Path, fake_bundle: Path) -> None:
    done = classify(images, "--bundle", fake_bundle, "--output", "/dev/full")

    assert done.returncode == 1
    assert done.stderr == b"vlp: --output /dev/full cannot be written: No space left on device\n"


def test_name_that_is_not_utf8_is_classified(classify, images: Path, fake_bundle: Path) -> None:
    odd = os.fsencode(images) + b"/\xff.png"
    os.rename(images / "0.png", odd)

    for given, run in ((images, classify), (os.fsdecode(odd), classify_process)):
        done = run(given, "--bundle", fake_bundle, "--format", "jsonl")
        assert done.returncode == 0
        assert any("path_b64" in record for record in records(done.stdout))
    assert classify(images, "--bundle", fake_bundle).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--classes", "absent.txt"], 1, "class list absent.txt cannot be read"),
        (["--engine", "onnx"], 1, "Use --engine auto"),
        (["--format", "xml"], 2, "--format"),
        (["--format", "parquet"], 2, "--output"),
        (["--top-k", "0"], 2, "--top-k"),
        (["--batch-size", "many"], 2, "--batch-size"),
        (["--template", "a {}."], 2, "--classes"),
        (["--reject"], 1, "vlp calibrate"),
        (["--multi-label"], 1, "vlp calibrate"),
        (["--reject", "--reject-below", "0.5"], 2, "give one"),
        (["--reject-below", "0.5", "--multi-label"], 2, "Leave out --reject"),
        (["--reject-below", "1.5"], 2, "--reject-below"),
        (["--device", "cuda:x"], 1, "expected cpu or cuda"),
    ],
)
def test_wrong_options_are_explained_with_their_code(
    classify, images: Path, fake_bundle: Path, arguments: list[str], code: int, complaint: str
) -> None:
    done = classify(images, "--bundle", fake_bundle, *arguments)

    assert done.returncode == code
    assert complaint in done.stderr.decode()
    assert done.stdout == b""


def test_progress_is_shown_to_a_terminal_only(
    images: Path, fake_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "new.txt").write_text("cat\ndog\n")
    screen, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    arguments = [images, "--bundle", fake_bundle, "--classes", tmp_path / "new.txt"]
    command = [sys.executable, "-m", "vlp_deploy", "classify", *map(str, arguments)]

    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=terminal, env=environment, timeout=300
    )

    os.close(terminal)
    shown = os.read(screen, 100_000)
    os.close(screen)
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 3
    assert b"class texts" in shown


def test_no_image_is_a_usage_error() -> None:
    assert classify_process().returncode == 2


def test_reader_that_goes_away_is_no_traceback(torture_folder: Path, fake_bundle: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "vlp_deploy", "classify", torture_folder]
    reading, writing = os.pipe()
    os.close(reading)  # the reader is gone before the first answer

    done = subprocess.run(
        [*command, "--bundle", fake_bundle],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment,
        timeout=300,
    )

    os.close(writing)
    # 0 would mean that nothing was written, 120 that Python tried again at exit; and the count of
    # failures that follows the last answer was not reached
    assert (done.returncode, done.stderr) == (1, b"")


def test_nothing_heavy_is_imported(images: Path, fake_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("cat\ndog\n")
    program = (
        "import sys\nfrom vlp_deploy.cli import run\n"
        f"code = run(['classify', {str(images)!r}, '--bundle', {str(fake_bundle)!r}, "
        f"'--classes', {str(tmp_path / 'new.txt')!r}])\n"
        "print(code, *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment, timeout=300
    )

    code, *modules = done.stderr.decode().split()
    assert code == "0"
    assert {"numpy", "vlp_deploy"} <= set(modules)
    assert HEAVY.isdisjoint(modules)
