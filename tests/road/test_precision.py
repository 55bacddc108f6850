"""The embedded model in other precisions, as a user asks for them: `int8` and `auto`."""

from pathlib import Path

import numpy as np
import pytest

from vlp_deploy import Classifier, embedded
from vlp_deploy.cli import run
from vlp_deploy.formats.bundle import Bundle

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

NAMES = ("airplane", "alarm_clock", "alien", "ambulance", "anchor", "ant", "avocado")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Class folders with two styles each, and a zero-shot run on them."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
    for name in NAMES:
        (data / name).mkdir()
        for style in ("noto", "twemoji"):
            picture = embedded.emoji_path() / name / f"{style}.png"
            (data / name / picture.name).write_bytes(picture.read_bytes())
    assert run(["train", str(data), "--method", "zeroshot", "--output", str(folder / "run")]) == 0
    return data, folder / "run"


def test_int8_of_the_embedded_model_needs_no_images_and_answers_alike(
    trained: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    data, source = trained
    for precision in ("fp32", "int8"):
        words = ["--output", str(tmp_path / precision), "--precision", precision]
        assert run(["export", str(source), *words]) == 0, capsys.readouterr().err

    plain, small = (Bundle(tmp_path / name) for name in ("fp32", "int8"))
    paths = sorted(data.rglob("*.png"))
    answers = [Classifier.load(bundle.path).classify(paths) for bundle in (plain, small)]
    same = [first.label == second.label for first, second in zip(*answers, strict=True)]
    assert np.mean(same) >= 0.9  # of 14 drawings
    sizes = [(b.path / b.manifest.graphs["image"].file).stat().st_size for b in (plain, small)]
    assert sizes[1] < 0.5 * sizes[0]
    assert run(["verify", str(small.path)]) == 0
    assert run(["inspect", str(small.path)]) == 0
    assert "batch cosine" in capsys.readouterr().out


def test_auto_says_what_it_tried(
    trained: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlp_export.precision_choice.TIMED_SECONDS", 0.05)
    data, source = trained
    words = ["--precision", "auto", "--calibration", str(data), "--output", str(tmp_path / "b")]

    assert run(["export", str(source), *words]) == 0

    manifest = Bundle(tmp_path / "b").manifest
    record = manifest.history[-1]["precision"]
    assert record["is"] == manifest.precision
    assert record["images"] == 14
    assert all(t["accuracy_loss"] is not None for t in record["trials"] if t["speed"])
    assert f"Taken: {manifest.precision}" in capsys.readouterr().err
