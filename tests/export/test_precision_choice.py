"""`vlp export --precision`: what is written, what is refused, and how `auto` decides."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.export.test_exporter import WEIGHTS, saved, vpt, zeroshot
from tests.export.test_exporter import pretrained as pretrained
from tests.export.tiny_clip import CLASSES, make_pixels
from vlp_deploy import Classifier
from vlp_deploy.cli import run
from vlp_deploy.engines.base import Arrays
from vlp_deploy.engines.openvino import OpenVinoEngine
from vlp_deploy.errors import DataError, EngineError, ParityError
from vlp_deploy.formats.bundle import Bundle, Manifest
from vlp_export import export
from vlp_export.evaluation_images import EvaluationImages
from vlp_export.exporter import build_bundle
from vlp_export.parity import passes
from vlp_export.precision import RANGE_IMAGES, PrecisionTarget, in_precision
from vlp_export.precision_choice import LEAST_APART, Budget, Trial, _refusal, parted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class, with four images in it."""
    folder = tmp_path_factory.mktemp("data")
    for number, image in enumerate(make_pixels(count=20, seed=6)):
        place = folder / CLASSES[number % 5]
        place.mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_bundle_in_another_precision_classifies_nearly_alike(
    precision: str, data: Path, tmp_path: Path, pretrained: str
) -> None:
    source = saved(vpt(), tmp_path)
    export(source, tmp_path / "fp32", pretrained=pretrained)
    calibration = data if precision == "int8" else None

    manifest = export(
        source,
        tmp_path / "small",
        pretrained=pretrained,
        precision=precision,
        calibration=calibration,
    )

    assert manifest.precision == Bundle(tmp_path / "small").manifest.precision == precision
    rows = [row for row in manifest.parity if row.precision == precision]
    assert [row.batch for row in rows] == [1, 2, 5, 8]
    assert all(passes(row) and row.batch_cosine is not None for row in rows)
    assert any(row.min_cosine < 1 for row in rows)
    first, second = (Classifier.load(tmp_path / name) for name in ("fp32", "small"))
    cosines = (first.embed(make_pixels()) * second.embed(make_pixels())).sum(axis=1)
    assert 0.99 <= cosines.min() < 1
    new = second.with_classes(["a heron", "a kettle"])
    assert new.class_embeddings is not None
    assert np.abs(new.class_embeddings - first.with_classes(new.classes).class_embeddings).max() < (
        1e-2
    )


def test_int8_without_images_says_what_to_pass(tmp_path: Path, pretrained: str) -> None:
    with pytest.raises(DataError, match="Pass --calibration IMAGES"):
        export(saved(zeroshot(), tmp_path), tmp_path / "b", pretrained=pretrained, precision="int8")

    assert not (tmp_path / "b").exists()


def test_int8_that_would_change_nothing_is_refused(
    data: Path, tmp_path: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlp_export.quantised.MOST_NOISE", -1.0)

    with pytest.raises(EngineError, match="int8 would change nothing in the image graph"):
        export(
            saved(zeroshot(), tmp_path),
            tmp_path / "b",
            pretrained=pretrained,
            precision="int8",
            calibration=data,
        )


@pytest.mark.parametrize(
    ("engine", "precision", "message"),
    [
        ("onnx", "bf16", r"does not take bf16[\s\S]*openvino"),
        ("onnx", "fp8", "does not take fp8"),
        ("onnx", "int4", "expected one of fp32"),
        ("tensorrt", "auto", "measures on this machine"),
    ],
)
def test_what_does_not_go_together_is_refused(
    engine: str, precision: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message):
        export(tmp_path / "none", tmp_path / "b", engine=engine, precision=precision)


# by default OpenVINO says so where the processor has no units for it
@pytest.mark.filterwarnings("ignore:this processor has no bfloat16 units")
def test_bfloat16_for_openvino_is_a_hint_on_the_float32_graph(
    tmp_path: Path, pretrained: str
) -> None:
    source = saved(zeroshot(), tmp_path)
    plain, hinted = (
        export(
            source,
            tmp_path / precision,
            pretrained=pretrained,
            engine="openvino",
            precision=precision,
        )
        for precision in ("fp32", "bf16")
    )

    assert (plain.precision, hinted.precision) == ("fp32", "bf16")
    assert plain.graphs == hinted.graphs


@pytest.mark.parametrize("served", [True, False])
def test_the_proof_is_of_the_logits_that_are_served(
    served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded ones pass where the host answers in their place, and only there."""
    run_as_it_is = OpenVinoEngine._run

    def rounding(engine: OpenVinoEngine, inputs: Arrays) -> dict[str, NDArray[Any]]:
        outputs = run_as_it_is(engine, inputs)
        logits = outputs["logits"].astype(ml_dtypes.bfloat16).astype(np.float32)
        return {**outputs, "logits": logits}

    contents = build_bundle(zeroshot(), WEIGHTS)
    target = PrecisionTarget(precision="fp16", engine="openvino")
    monkeypatch.setattr(OpenVinoEngine, "_run", rounding)
    monkeypatch.setattr(OpenVinoEngine, "rounds_logits", served)

    with nullcontext() if served else pytest.raises(ParityError, match="not embedding"):
        in_precision(contents, target)


def test_typed_graphs_for_tensorrt_are_proven_here(tmp_path: Path, pretrained: str) -> None:
    manifest = export(
        saved(zeroshot(), tmp_path),
        tmp_path / "b",
        pretrained=pretrained,
        engine="tensorrt",
        precision="bf16",
    )

    rows = [row for row in manifest.parity if row.precision == "bf16"]
    assert rows
    assert all(row.min_cosine < 1 for row in rows)


def exported_by_auto(
    folder: Path, data: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> Manifest:
    monkeypatch.setattr("vlp_export.precision_choice.TIMED_SECONDS", 0.01)
    return export(
        saved(zeroshot(), folder),
        folder / "b",
        pretrained=pretrained,
        precision="auto",
        calibration=data,
        budget=budget,
    )


def test_auto_takes_the_fastest_within_the_budget(
    data: Path, tmp_path: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([1.5, 1.2, 4.0, 3.0])  # fp16 and int8, batches of 1 and 8
    monkeypatch.setattr("vlp_export.precision_choice._speed", lambda *_: next(measured))
    lenient = Budget(accuracy_loss=100, agreement=0)

    manifest = exported_by_auto(tmp_path, data, pretrained, monkeypatch, lenient)

    record = manifest.history[-1]["precision"]
    assert manifest.precision == record["is"] == "int8"
    tried = {trial["precision"]: trial for trial in record["trials"]}
    assert list(tried) == ["fp16", "bf16", "int8", "fp8"]
    assert "onnxruntime" in tried["bf16"]["refused"]
    assert tried["int8"]["speed"] == {"1": 4.0, "8": 3.0}
    assert tried["int8"]["accuracy_loss"] is not None
    assert (record["images"], record["range_images"], record["apart"]) == (20, 20, False)


@pytest.mark.parametrize(("count", "judging"), [(127, 127), (128, 64), (576, 512)])
def test_ranges_and_budget_see_other_images_where_there_are_enough(
    count: int, judging: int
) -> None:
    numbers = np.arange(count)
    pixels = np.broadcast_to(numbers[:, None, None, None], (count, 3, 1, 1))
    images = EvaluationImages(source="numbered", pixels=pixels, labels=numbers)  # type: ignore[arg-type]

    ranged, judged = parted(images)

    assert len(ranged) == RANGE_IMAGES
    assert len(judged.pixels) == judging
    assert np.array_equal(judged.pixels[:, 0, 0, 0], judged.labels)
    shared = set(ranged.flatten()) & set(judged.pixels.flatten())
    assert bool(shared) == (count < LEAST_APART)
    assert np.ptp(ranged) == count - 1  # spread over all classes, which may be sorted


def test_a_record_tells_that_ranges_came_from_other_images(
    tmp_path: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlp_export.precision_choice._speed", lambda *_: 0.9)
    for number, image in enumerate(make_pixels(count=LEAST_APART, seed=6)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")

    manifest = exported_by_auto(tmp_path, tmp_path, pretrained, monkeypatch, Budget())

    record = manifest.history[-1]["precision"]
    assert (record["images"], record["range_images"], record["apart"]) == (64, 64, True)


def test_auto_keeps_float32_where_nothing_is_faster(
    data: Path, tmp_path: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlp_export.precision_choice._speed", lambda *_: 0.9)

    manifest = exported_by_auto(tmp_path, data, pretrained, monkeypatch, Budget())

    record = manifest.history[-1]["precision"]
    assert manifest.precision == record["is"] == "fp32"
    assert all(trial["refused"] for trial in record["trials"])


@pytest.mark.parametrize(
    ("agreement", "loss", "speed", "refusal"),
    [
        (99.4, 0.0, 4.0, "agrees with fp32 on 99.40 %, wanted are 99.5 %"),
        (100.0, 0.6, 4.0, "loses 0.60 points, allowed are 0.5"),
        (100.0, 0.0, 1.0, "gains less than 5 % over fp32"),
        (99.5, 0.5, 1.1, ""),
        (99.5, None, 1.1, ""),
    ],
)
def test_a_refusal_says_what_the_budget_was(
    agreement: float, loss: float | None, speed: float, refusal: str
) -> None:
    trial = Trial(
        precision="int8",
        agreement=agreement,
        accuracy_loss=loss,
        speed={"1": speed + 1, "8": speed},
    )

    assert _refusal(trial, Budget()) == refusal


@pytest.mark.parametrize("budget", [{"accuracy_loss": -1.0}, {"agreement": 101.0}])
def test_budgets_are_percentages(budget: dict[str, float]) -> None:
    with pytest.raises(EngineError, match="expected 0 to 100"):
        Budget(**budget)


def test_the_command_prints_what_auto_tried(
    data: Path,
    tmp_path: Path,
    pretrained: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vlp_export.precision_choice._speed", lambda *_: 0.9)
    source, output = str(saved(zeroshot(), tmp_path)), str(tmp_path / "b")
    words = ["--precision", "auto", "--calibration", str(data), "--pretrained", pretrained]

    assert run(["export", source, "--output", output, *words]) == 0

    printed = capsys.readouterr()
    assert "Taken: fp32" in printed.err
    assert "gains" in printed.err
    assert "One image of 20 is more than the 0.5 %" in printed.err
    assert "ranges of int8 and fp8 taken from 20 of them" in " ".join(printed.err.split())
    assert printed.out.count(" ok ") == 4
