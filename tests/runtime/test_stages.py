"""Stages of one image, the rate of matrix products, and rivals by name."""

from pathlib import Path

import numpy as np
import pytest

from vlp_deploy.classifier import Classifier
from vlp_deploy.errors import DataError, EngineError
from vlp_deploy.formats.architecture import VisionTower
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring import stages
from vlp_deploy.measuring.gemm import best_rate, measure_gemm
from vlp_deploy.measuring.records import STAGES
from vlp_deploy.measuring.rivals import RivalOptions, load_in, rival_names

TOWER = VisionTower(image_size=32, patch_size=16, width=8, layers=1, heads=1, mlp_width=32)


def test_stages_take_the_time_of_every_part(fake_bundle: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(fake_bundle, engine="fake")
    paths = stages.write_golden_images(classifier.bundle, tmp_path)

    found = stages.measure_stages(classifier, paths, source="golden", seconds=0)

    assert tuple(found.spreads) == STAGES
    assert all(spread.calls == 10 for spread in found.spreads.values())
    assert all(spread.p50_ms > 0 for spread in found.spreads.values())
    assert (found.source, found.images) == ("golden", 8)


def test_a_slow_stage_is_told_from_the_others(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier.load(fake_bundle, engine="fake")
    (path, *_) = stages.write_golden_images(classifier.bundle, tmp_path)
    now = iter(range(0, 100, 10))
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(now) / 1000)

    times = stages.times_of(classifier, path)

    assert times == pytest.approx([10] * len(STAGES))


def test_an_image_that_cannot_be_read_is_named(fake_bundle: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(fake_bundle, engine="fake")
    (tmp_path / "x.jpg").write_text("no image")

    with pytest.raises(DataError, match=r"image .*x\.jpg: .*Mend or remove it"):
        stages.measure_stages(classifier, [tmp_path / "x.jpg"], source="x", seconds=0)


def test_golden_images_are_almost_themselves_as_jpeg(fake_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle(fake_bundle)

    paths = stages.write_golden_images(bundle, tmp_path)

    assert len(paths) == len(bundle.golden().pixels)
    assert all(path.read_bytes().startswith(b"\xff\xd8") for path in paths)


def test_matrix_products_have_the_shape_of_the_tower() -> None:
    (one, three) = measure_gemm(TOWER, batches=[1, 3], threads=1)

    assert (one.rows, one.inner, one.columns) == (5, 8, 32)  # four patches and the class token
    assert three.rows == 15
    assert one.gflops_per_s > 0
    assert one.library.startswith(f"numpy {np.__version__} ")


def test_rate_counts_two_operations_a_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlp_deploy.measuring.gemm.milliseconds", lambda call: 2.0)
    monkeypatch.setattr("vlp_deploy.measuring.gemm.SECONDS", 0)

    assert best_rate(1000, 100, 10) == pytest.approx(2 * 1000 * 100 * 10 / 0.002 / 1e9)


def test_a_matrix_product_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")

    with pytest.raises(EngineError, match="matrix product could not be measured"):
        measure_gemm(TOWER, batches=[1], threads=1)


def test_rivals_are_known_by_name() -> None:
    assert rival_names("onnx, torch,onnx") == ("onnx", "torch")
    assert rival_names("") == ()
    with pytest.raises(EngineError, match=r"--against tea: unknown. Available: torch, torch-com"):
        rival_names("torch,tea")


def test_a_rival_serves_the_classes_that_are_measured(fake_bundle: Path) -> None:
    pixels = Bundle(fake_bundle).golden().pixels
    ours = Classifier.load(fake_bundle, engine="fake").with_classes(["cat", "dog"])

    options = RivalOptions(classes=("cat", "dog"), pretrained=None, threads=1, device="cpu")
    other = load_in("fake", fake_bundle, options)

    assert np.array_equal(other.logits(pixels), ours.logits(pixels))
