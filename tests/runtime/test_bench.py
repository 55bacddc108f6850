"""What `vlp bench` reports, on data whose answer is known."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.classifier import Classifier
from vlp_deploy.commands.bench import REPORT_FILE
from vlp_deploy.errors import EngineError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.structures import Coupled
from vlp_deploy.measuring.bench import (
    measure_cold_start,
    measure_contenders,
    measure_latencies,
)
from vlp_deploy.measuring.records import BenchReport
from vlp_deploy.measuring.timing import PASSES


class Sleeper:
    """A contender that takes its time."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        time.sleep(self.milliseconds / 1000)
        return np.zeros((len(pixels), 2), np.float32)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("red", "green"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), name).save(folder / name / "1.png")
    return folder


def test_latencies_tell_contenders_and_batches_apart() -> None:
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    contenders = {"fast": Sleeper(0), "slow": Sleeper(2)}

    times = measure_latencies(
        contenders, pixels, batches=[1, 3], seconds=0, threads=1, progress=lambda text, n: None
    )

    assert {name: list(found.passes) for name, found in times.items()} == {
        "fast": [1, 3],
        "slow": [1, 3],
        "reference work": [1, 3],
    }
    for batch in (1, 3):
        assert len(times["slow"].passes[batch]) == PASSES
        assert np.concatenate(times["slow"].calls(batch)).min() >= 2  # nobody sleeps too little


def test_cold_start_measures_a_whole_process(fake_bundle: Path) -> None:
    found = measure_cold_start(Bundle(fake_bundle), engine="fake", repeats=1)

    assert 0.05 < found.later_s[0] < 60
    assert 20 < found.peak_memory_mb < 500  # Python with NumPy, and no more than that


def test_bench_writes_the_report_it_prints(
    fake_bundle: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(class_folders), "--engine", "fake", "--no-cold-start"]
    options += ["--seconds", "0", "--batch", "2", "--output", str(tmp_path / "report")]

    assert cli.run(["bench", str(fake_bundle), *options]) == 0

    content = (tmp_path / "report" / REPORT_FILE).read_bytes()
    report = msgspec.json.decode(content, type=BenchReport)
    (result,) = report.contenders
    assert [latency.batch for latency in result.latencies] == [2]
    assert result.accuracy is not None
    assert result.accuracy.images == 2
    assert f"of {result.accuracy.images} images" in capsys.readouterr().out


def test_cold_start_that_fails_says_why(fake_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"exit code 1: vlp: there is no engine 'tea'.*--no-cold"):
        measure_cold_start(Bundle(fake_bundle), engine="tea", repeats=1)


def quick_bench(bundle: Path, *options: str | Path) -> int:
    common = ["--engine", "fake", "--no-cold-start", "--seconds", "0", "--batch", "1"]
    return cli.run(["bench", str(bundle), *common, *map(str, options)])


def test_output_that_cannot_be_written_is_told_before_the_measuring(
    fake_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "report" / REPORT_FILE).mkdir(parents=True)
    monkeypatch.setattr(
        "vlp_deploy.commands.bench_run.measure_contenders", None
    )  # calling it would raise

    for output, reason in (("file", "File exists"), ("report", "is a folder")):
        assert quick_bench(fake_bundle, "--output", tmp_path / output) == 1
        shown = capsys.readouterr()
        assert shown.err.startswith("vlp: --output")
        assert reason in shown.err


def test_report_is_printed_before_it_is_written(
    fake_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("vlp_deploy.commands.bench.write_atomic", full_disk)

    assert quick_bench(fake_bundle, "--output", tmp_path) == 1
    shown = capsys.readouterr()
    assert "images/s" in shown.out
    assert "No space left" in shown.err


def test_list_files_come_with_their_root_and_names(
    fake_bundle: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("path,label\nred/1.png,n1\ngreen/1.png,n2\n")
    (tmp_path / "names.txt").write_text("n1 red\nn2 green\n")
    options = ["--image-root", class_folders, "--classnames", tmp_path / "names.txt"]

    assert quick_bench(fake_bundle, "--data", tmp_path / "list.csv", *options) == 0
    assert "of 2 images, decoded in full" in " ".join(capsys.readouterr().out.split())


def test_names_are_printed_as_they_are(
    changed_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert quick_bench(changed_bundle(method="[red]:cat:[/]")) == 0
    assert "[red]:cat:[/]" in capsys.readouterr().out


def test_bench_refuses_an_unknown_rival(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", str(fake_bundle), "--engine", "fake", "--against", "tea"]) == 1
    assert "Available: torch" in capsys.readouterr().err


def test_bundle_of_a_fixed_batch_is_measured_at_that_batch(
    changed_bundle: Callable[..., Path], class_folders: Path, tmp_path: Path
) -> None:
    bundle = changed_bundle(structure=Coupled(depth=1, context="batch", batch_size=3))
    words = ["--engine", "fake", "--seconds", "0", "--data", str(class_folders)]

    assert cli.run(["bench", str(bundle), *words, "--output", str(tmp_path / "report")]) == 0

    content = (tmp_path / "report" / REPORT_FILE).read_bytes()
    report = msgspec.json.decode(content, type=BenchReport)
    assert [latency.batch for latency in report.contenders[0].latencies] == [3]
    assert report.cold_start is report.stages is None
    (left_out,) = report.left_out
    assert "exactly 3 at a time" in left_out
    for file in ("report.html", "report.md"):
        assert "Not measured: stages and cold start" in (tmp_path / "report" / file).read_text()


@pytest.mark.parametrize("cached", [True, False])
def test_report_says_whether_text_embeddings_were_computed_beforehand(
    cached: bool, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle(fake_bundle)
    bank = bundle.class_bank()
    if not cached:  # as CoCoOp's, which depend on the image
        monkeypatch.setattr(bundle, "class_bank", lambda: replace(bank, embeddings=None))

    (result,) = measure_contenders(
        {"ours": Classifier.load(fake_bundle, engine="fake")},
        bundle,
        batches=[1],
        seconds=0,
        threads=1,
        progress=lambda text, n: None,
    )

    assert result.text_embeddings_cached == cached
