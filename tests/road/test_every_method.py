"""What every method promises alike, however different its graphs: trained, exported, classified.

Each is trained for two epochs on a few emoji, at a rate that moves its prompts, and exported.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vlp_deploy import Classifier, embedded
from vlp_deploy.cli import run
from vlp_deploy.errors import VlpError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.methods import METHODS
from vlp_deploy.tolerance import LEAST_COSINES

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

TRAINED = ("airplane", "alarm_clock", "alien", "ambulance", "anchor", "ant", "avocado")
NEW = ("bicycle", "red apple", "whale")
# float32 products of other batch sizes add up in another order, at a logit scale of 36
BATCH_TOLERANCE = 1e-4
HALF_TOLERANCE = 0.1  # float16 has 11 bits; logits are up to 36


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method with options, and whether it serves classes nobody trained on."""

    method: str
    options: tuple[str, ...] = ()
    stage_1: str = ""
    new_classes: bool = True


CASES = {
    "zeroshot": Case(method="zeroshot"),
    "coop": Case(method="coop"),
    "coop-middle": Case(method="coop", options=("position=middle", "context_tokens=4")),
    "coop-each-class": Case(method="coop", options=("class_specific=true",), new_classes=False),
    "cocoop": Case(method="cocoop"),
    "kgcoop": Case(method="kgcoop"),
    "vpt": Case(method="vpt"),
    "deep_language": Case(method="deep_language"),
    "ivlp": Case(method="ivlp"),
    "maple": Case(method="maple"),
    "promptsrc": Case(method="promptsrc"),
    "dpt-selector": Case(method="dpt", options=("selected=3",)),
    "dpt-small": Case(method="dpt"),  # it selects 10 of the 7 classes
    "dcp": Case(method="dcp"),
    "dpl": Case(method="dpl"),
    "dpc-coop": Case(method="dpc", stage_1="coop"),
    "dpc-maple": Case(method="dpc", stage_1="maple"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with two styles each."""
    folder = tmp_path_factory.mktemp("emoji")
    for name in TRAINED:
        (folder / name).mkdir()
        for style in ("noto", "twemoji"):
            picture = embedded.emoji_path() / name / f"{style}.png"
            (folder / name / picture.name).write_bytes(picture.read_bytes())
    return folder


@pytest.fixture(scope="module")
def bundles(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case's bundle, exported; training is proven against it on the way."""
    folder = tmp_path_factory.mktemp("methods")
    return {name: _bundle(case, data, folder / name) for name, case in CASES.items()}


def _bundle(case: Case, data: Path, folder: Path) -> Path:
    words = ["train", str(data), "--method", case.method, "--output", str(folder / "run")]
    if case.method != "zeroshot":
        words += ["--shots", "1", "--epochs", "2", "--batch-size", "4", "--learning-rate", "0.05"]
    if case.stage_1:
        words += ["--stage1", str(folder.parent / case.stage_1 / "run")]
    for option in case.options:
        words += ["-O", option]
    assert run(words) == 0, words
    assert run(["export", str(folder / "run"), "--output", str(folder / "bundle")]) == 0, words
    return folder / "bundle"


@cache
def drawings() -> NDArray[np.uint8]:
    """Of the embedded bundle, which every test would unpack into a cache of its own."""
    return Bundle(embedded.default_bundle()).golden().pixels


def pictures(seed: int, count: int = 9) -> NDArray[np.uint8]:
    """Drawings of all sorts in random order, as the tower reads them."""
    rng = np.random.default_rng(seed)
    golden = drawings()
    noise = rng.integers(0, 256, golden.shape, np.uint8)
    return rng.permutation(np.concatenate([golden, noise]))[:count]


@cache
def served(bundle: Path) -> Classifier:
    """A bundle in onnxruntime, loaded once for all of its tests."""
    return Classifier.load(bundle, "onnx")


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_answer_depends_on_the_other_images(
    name: str, seed: int, bundles: dict[str, Path]
) -> None:
    classifier, pixels = served(bundles[name]), pictures(seed)
    alone = np.concatenate([classifier.logits(pixel[None]) for pixel in pixels])
    cut = int(np.random.default_rng(seed).integers(1, len(pixels)))

    together = classifier.logits(pixels)
    parts = np.concatenate([classifier.logits(pixels[:cut]), classifier.logits(pixels[cut:])])

    assert alone.std() > 0.1  # the case can fail: answers differ between images
    np.testing.assert_allclose(together, alone, rtol=0, atol=BATCH_TOLERANCE)
    np.testing.assert_allclose(parts, alone, rtol=0, atol=BATCH_TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_new_classes_are_served_or_refused_with_the_reason(
    name: str, bundles: dict[str, Path]
) -> None:
    classifier = served(bundles[name])
    if not CASES[name].new_classes:
        with pytest.raises(VlpError, match="context of its own"):
            classifier.with_classes(NEW)
        return

    other = classifier.with_classes(NEW)
    answers = other.classify([embedded.emoji_path() / "airplane" / "noto.png"], top_k=3)

    assert other.logits(pictures(1)).shape == (9, len(NEW))
    assert {candidate.label for candidate in answers[0].top} == set(NEW)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.new_classes])
def test_training_classes_given_as_new_ones_get_the_same_answers(
    name: str, bundles: dict[str, Path]
) -> None:
    classifier, pixels = served(bundles[name]), pictures(3)

    again = classifier.with_classes(classifier.classes)

    np.testing.assert_allclose(
        again.logits(pixels), classifier.logits(pixels), rtol=0, atol=BATCH_TOLERANCE
    )


def test_a_small_dpt_says_how_many_classes_it_takes(bundles: dict[str, Path]) -> None:
    classifier = served(bundles["dpt-small"])

    with pytest.raises(VlpError, match="10 classes"):
        classifier.with_classes([f"thing number {index}" for index in range(11)])


@pytest.mark.parametrize("name", ["dpt-small", "dcp", "dpl", "dpc-coop", "dpc-maple"])
def test_a_bundle_in_half_precision_is_the_same_in_all_else(
    name: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    words = ["export", str(bundles[name]), "--precision", "fp16", "--output", str(tmp_path / "b")]
    assert run(words) == 0

    before, after = (Bundle(path).contents() for path in (bundles[name], tmp_path / "b"))
    changed = {"precision", "graphs", "parity", "history"}
    kept, found = (
        {
            key: value
            for key, value in msgspec.structs.asdict(each.manifest).items()
            if key not in changed
        }
        for each in (before, after)
    )
    assert found == kept
    assert after.golden.further.keys() == before.golden.further.keys()
    assert (len(after.golden.further) == 1) == (name == "dpc-maple")
    half, full, pixels = Classifier.load(tmp_path / "b", "onnx"), served(bundles[name]), pictures(4)
    cosines = (half.embed(pixels) * full.embed(pixels)).sum(axis=1)
    assert cosines.min() > LEAST_COSINES["fp16"]
    new = [each.with_classes(NEW).logits(pixels) for each in (half, full)]
    assert np.abs(new[0] - new[1]).max() < HALF_TOLERANCE
