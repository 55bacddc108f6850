"""`vlp bench` with loops and stages asked for, and with labelled images that cannot be used."""

import math
import os
import re
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.commands.bench import REPORT_FILE
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.measuring.compare import load_report
from vlp_deploy.measuring.records import STAGES, BenchReport


def bench(bundle: Path, *words: str | Path) -> int:
    quick = ["--engine", "fake", "--no-cold-start", "--seconds", "0", "--batch", "1"]
    return cli.run(["bench", str(bundle), *quick, *map(str, words)])


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), "red").save(path)
    return path


def test_loops_and_stages_are_in_the_report(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--concurrency", "1,3", "--rate", "400", "--constant-rate", "--output", tmp_path]

    assert bench(fake_bundle, *words) == 0

    report = msgspec.json.decode((tmp_path / REPORT_FILE).read_bytes(), type=BenchReport)
    (result,) = report.contenders
    assert [(loop.kind, loop.concurrency, loop.rate) for loop in result.loops] == [
        ("closed", 1, None),
        ("closed", 3, None),
        ("open", 3, 400),
    ]
    assert report.stages is not None
    assert tuple(report.stages.spreads) == STAGES
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("3 callers", "400/s", "preprocess", "golden images"))


def test_loops_and_stages_can_be_left_out(fake_bundle: Path, tmp_path: Path) -> None:
    assert bench(fake_bundle, "--concurrency", "", "--no-stages", "--output", tmp_path) == 0

    report = msgspec.json.decode((tmp_path / REPORT_FILE).read_bytes(), type=BenchReport)
    assert report.stages is None
    assert report.contenders[0].loops == ()


def test_the_load_is_that_before_the_measuring(
    fake_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = iter([64.0])  # asked for once, at the start
    monkeypatch.setattr("os.getloadavg", lambda: (next(loads), 0.0, 0.0))

    assert bench(fake_bundle, "--concurrency", "", "--no-stages", "--output", tmp_path) == 0

    report = msgspec.json.decode((tmp_path / REPORT_FILE).read_bytes(), type=BenchReport)
    assert report.machine.load_average == 64.0
    assert "load average was 64.0" in report.warnings[0]
    assert "warning: the load average was 64.0" in " ".join(capsys.readouterr().out.split())


def test_one_image_is_enough(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("1.png,red,train", "2.png,green,train", "3.png,red,test")
    for row in rows:
        picture(tmp_path / row.split(",")[0])
    (tmp_path / "list.csv").write_text("\n".join(("path,label,split", *rows)))

    assert bench(fake_bundle, "--data", tmp_path / "list.csv", "--concurrency", "") == 0
    assert "of 1 images" in " ".join(capsys.readouterr().out.split())


def test_classes_that_the_bundle_lacks_are_told(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("red", "cat"):
        picture(tmp_path / "data" / name / "1.png")

    assert bench(fake_bundle, "--data", tmp_path / "data") == 1
    assert "1 classes that the bundle does not know, first 'cat'" in capsys.readouterr().err


def test_an_empty_class_is_told(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "data" / "red" / "1.png")
    (tmp_path / "data" / "green").mkdir()

    assert bench(fake_bundle, "--data", tmp_path / "data") == 1
    assert "green holds no images" in capsys.readouterr().err


def test_one_class_alone_is_told(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "data" / "red" / "1.png")

    assert bench(fake_bundle, "--data", tmp_path / "data") == 1
    assert "one class only, 'red'" in capsys.readouterr().err


def test_a_damaged_image_is_named(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "data" / "red" / "1.png")
    (tmp_path / "data" / "green").mkdir()
    (tmp_path / "data" / "green" / "broken.png").write_text("no picture")

    assert bench(fake_bundle, "--data", tmp_path / "data") == 1
    assert "broken.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--rate", "x"), "--rate is 'x'; expected numbers above 0"),
        (("--concurrency", "0.5"), "--concurrency is '0.5'; expected whole numbers"),
        (("--against", "tea"), "Available: torch, torch-compile, openclip-onnx, openvino, onnx"),
    ],
)
def test_options_are_checked_before_anything_is_measured(
    words: tuple[str, str],
    reason: str,
    fake_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlp_deploy.commands.bench_run.measure_contenders", None)

    assert bench(fake_bundle, *words) == 1
    assert reason in capsys.readouterr().err


def test_questions_that_cannot_be_answered_are_told_before_anything_is_measured(
    fake_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlp_deploy.commands.bench_run.measure_contenders", None)
    for name in ("data/red", "data/green", "other/cat", "other/dog"):
        picture(tmp_path / name / "1.png")
    (tmp_path / "other" / "dog" / "2.png").write_text("no picture")
    (tmp_path / "base.txt").write_text("red\nblue\n")
    questions = {
        ("--domain", "x(y)"): "finds no domain",
        ("--base-classes", tmp_path / "base.txt"): "have 1 base classes",
        ("--transfer", tmp_path / "other"): "2.png",
    }

    for words, complaint in questions.items():
        assert bench(fake_bundle, "--data", tmp_path / "data", *words) == 1
        assert complaint in capsys.readouterr().err


def test_images_whose_names_are_not_utf8_are_in_the_report(
    fake_bundle: Path, tmp_path: Path
) -> None:
    for name in ("red", "green"):  # equal images: one of them is wrong
        picture(tmp_path / "data" / name / "1.png")
        (tmp_path / "data" / name / "1.png").rename(
            tmp_path / "data" / name / os.fsdecode(b"\xe9.png")
        )
    report = tmp_path / "report"

    words = ["--data", tmp_path / "data", "--concurrency", "", "--output", report]
    assert bench(fake_bundle, *words) == 0

    found = load_report(report / REPORT_FILE).findings
    assert found is not None
    assert found.mistakes[0].truth_example.endswith("?.png")
    assert "data:image/jpeg" in (report / "report.html").read_text()


def test_long_names_are_shown_whole(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ("long-name-" * 9 + "int8")).symlink_to(fake_bundle)
    (tmp_path / ("long-name-" * 9 + "fp16")).symlink_to(fake_bundle)
    beside = [word for path in tmp_path.glob("long*") for word in ("--beside", path)]

    assert bench(fake_bundle, "--concurrency", "", "--no-stages", *beside) == 0
    assert "…" not in capsys.readouterr().out


def test_a_bundle_that_reads_images_otherwise_is_refused(
    fake_bundle: Path, changed_bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bilinear = Preprocessing(image_size=32, interpolation="bilinear")

    assert bench(fake_bundle, "--beside", changed_bundle(preprocessing=bilinear)) == 1
    assert "interpolation bilinear" in capsys.readouterr().err


def test_a_bundle_beside_is_named_by_its_folder(
    fake_bundle: Path,
    changed_bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = changed_bundle()
    monkeypatch.chdir(other)

    assert bench(fake_bundle, "--beside", ".", "--concurrency", "", "--no-stages") == 0
    assert re.search(rf"{other.name} *│ 1 +│ \d", capsys.readouterr().out)


def test_each_bundle_has_probabilities_at_its_own_temperature(
    fake_bundle: Path, changed_bundle, tmp_path: Path
) -> None:
    for name in ("red", "green"):
        picture(tmp_path / "data" / name / "1.png")
    calm, report = changed_bundle(temperature=1000.0), tmp_path / "report"

    words = ["--data", tmp_path / "data", "--concurrency", "", "--output", report]
    assert bench(fake_bundle, *words, "--beside", calm) == 0

    ours, theirs = (result.accuracy for result in load_report(report / REPORT_FILE).contenders)
    assert ours is not None
    assert theirs is not None
    assert theirs.nll == pytest.approx(math.log(4), abs=0.1)  # as if nothing were known
    assert abs(ours.nll - theirs.nll) > 0.1
