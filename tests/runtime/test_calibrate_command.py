"""`vlp calibrate`: a copy of a bundle that knows its temperature, and what cannot be fitted."""

from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from PIL import Image

from vlp_deploy import Classifier, Prediction, cli
from vlp_deploy.commands.calibrate import fit, halves
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.sealed import CHECKSUMS
from vlp_deploy.formats.structures import Coupled

CLASSES = ("red", "green", "blue", "grey")


def write_pictures(folder: Path, counts: Mapping[str, int], *, seed: int = 0) -> Path:
    """Noise in class folders."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            noise = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(noise).save(folder / name / f"{index}.png")
    return folder


def write_answered(folder: Path, bundle: Path, count: int) -> Path:
    """Noise in the folders of the classes it is taken for, but for a third, which is misplaced."""
    random, classifier = np.random.default_rng(2), Classifier.load(bundle)
    for index in range(count):
        noise = random.integers(0, 256, 3) * random.random((32, 32, 3))
        picture = Image.fromarray(noise.astype(np.uint8))
        (answer,) = classifier.classify([picture])
        assert isinstance(answer, Prediction)
        label = answer.label if index % 3 else CLASSES[index % 4]
        (folder / label).mkdir(parents=True, exist_ok=True)
        picture.save(folder / label / f"{index}.png")
    return folder


def calibrate(*arguments: Path | str) -> int:
    return cli.run(["calibrate", *map(str, arguments)])


def test_copy_differs_in_what_was_fitted_only(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_answered(tmp_path / "data", fake_bundle, 60)
    unknown = write_pictures(tmp_path / "unknown", {"cat": 30, "dog": 30}, seed=1)

    code = calibrate(fake_bundle, data, "--unknown", unknown, "--output", tmp_path / "new")

    assert code == 0
    before, after = Bundle(fake_bundle), Bundle(tmp_path / "new")
    assert {complaint for _, complaint in after.files.verify()} == {None}
    for path in fake_bundle.iterdir():
        if path.name not in ("manifest.json", CHECKSUMS):
            assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    assert after.manifest.temperature != before.manifest.temperature
    step = after.manifest.history[-1]
    assert step["step"] == "calibrate"
    assert step["temperature"] == after.manifest.temperature
    assert step["rejection"]["threshold"] == after.manifest.reject_threshold
    assert f"temperature {after.manifest.temperature:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize("within", ["red", "."])  # a folder's own name is no class's
def test_unknown_images_may_lie_in_one_folder(
    within: str, fake_bundle: Path, tmp_path: Path
) -> None:
    data = write_answered(tmp_path / "data", fake_bundle, 60)
    name = "red" if within == "red" else "other"
    unknown = write_pictures(tmp_path / "unknown", {name: 60}, seed=1) / within
    (unknown / ".hidden.png").write_bytes(b"no picture")

    code = calibrate(fake_bundle, data, "--unknown", unknown, "--output", tmp_path / "new")

    assert code == 0
    rejection = Bundle(tmp_path / "new").manifest.history[-1]["rejection"]
    assert rejection["other_unknown_accepted"] is None


@pytest.mark.parametrize(
    ("known", "complaint"),
    [
        ({"red": 1, "blue": 1}, "has 2 images to calibrate with; at least 20"),
        ({"red": 1}, "has one class only, 'red'"),
        (dict.fromkeys(CLASSES, 1), "has 4 images to calibrate with; at least 20"),
        ({"red": 20, "blue": 20, "green": 0}, "green holds no images"),
        (
            {"red": 30, "cat": 30},
            "1 classes that the bundle does not know, first 'cat'; the bundle has 4. Leave those",
        ),
        (dict.fromkeys(CLASSES, 9), "no temperature fits"),  # noise
    ],
)
def test_data_that_cannot_be_fitted_to_says_why_and_writes_nothing(
    known: Mapping[str, int],
    complaint: str,
    fake_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_pictures(tmp_path / "data", known)

    assert calibrate(fake_bundle, data, "--output", tmp_path / "new") == 1

    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_image_that_cannot_be_read_is_named(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / "data", {"red": 20, "blue": 20})
    (data / "blue" / "7.png").write_bytes(b"no picture")

    assert calibrate(fake_bundle, data, "--output", tmp_path / "new") == 1

    assert f"{data}/blue/7.png: this is not an image" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("unknown", "complaint"),
    [
        ({"red": 9, "cat": 9}, "1 classes that the bundle knows, first 'red'"),
        ({"_RED": 9, "cat": 9}, "1 classes that the bundle knows"),
        ({"cat": 5, "dog": 4}, "5 unknown images to fit to cannot tell"),
    ],
)
def test_unknown_images_that_cannot_be_fitted_to_say_why(
    unknown: Mapping[str, int],
    complaint: str,
    fake_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_answered(tmp_path / "data", fake_bundle, 60)
    strangers = write_pictures(tmp_path / "unknown", unknown)

    code = calibrate(fake_bundle, data, "--unknown", strangers, "--output", tmp_path / "new")

    assert code == 1
    assert complaint in capsys.readouterr().err


def test_unknown_folder_that_cannot_be_understood_is_told(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_answered(tmp_path / "data", fake_bundle, 60)
    (tmp_path / "empty").mkdir()
    mixed = write_pictures(tmp_path / "mixed", {"cat": 1})
    Image.new("RGB", (9, 9)).save(mixed / "dog.png")

    for unknown, complaint in ((tmp_path / "empty", "no images"), (mixed, "beside folders")):
        assert calibrate(fake_bundle, data, "--unknown", unknown, "--output", tmp_path / "n") == 1
        assert complaint in capsys.readouterr().err


def test_classes_of_the_data_may_be_named(fake_bundle: Path, tmp_path: Path) -> None:
    data = write_answered(tmp_path / "data", fake_bundle, 60)
    names = tmp_path / "names.txt"
    for number, name in enumerate(CLASSES):
        (data / name).rename(data / f"n{number}")
    names.write_text("".join(f"n{number} {name}\n" for number, name in enumerate(CLASSES)))
    common = ("--output", tmp_path / "new")

    assert calibrate(fake_bundle, data, *common) == 1
    assert calibrate(fake_bundle, data, "--classnames", names, *common) == 0


def test_a_bundle_of_a_fixed_batch_is_calibrated(fake_bundle: Path, changed_bundle, tmp_path: Path):
    data = write_answered(tmp_path / "data", fake_bundle, 61)
    fixed = changed_bundle(structure=Coupled(depth=1, context="batch", batch_size=8))

    assert calibrate(fake_bundle, data, "--output", tmp_path / "a") == 0
    assert calibrate(fixed, data, "--output", tmp_path / "b") == 0

    found = [Bundle(tmp_path / name).manifest.temperature for name in "ab"]
    assert found[0] == pytest.approx(found[1], rel=1e-4)  # the fake engine sees each image alone


def test_calibrated_again_is_compared_with_what_there_was(
    fake_bundle: Path, tmp_path: Path
) -> None:
    data = write_answered(tmp_path / "data", fake_bundle, 60)

    assert calibrate(fake_bundle, data, "--output", tmp_path / "once") == 0
    assert calibrate(tmp_path / "once", data, "--output", tmp_path / "twice") == 0

    held_out = Bundle(tmp_path / "twice").manifest.history[-1]["held_out"]
    assert held_out["ece_before"] == held_out["ece_after"]


def test_thresholds_for_each_class_need_images_of_each(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_answered(tmp_path / "data", fake_bundle, 60)
    everything = tmp_path / "everything", tmp_path / "lacking"

    assert calibrate(fake_bundle, data, "--multi-label", "--output", everything[0]) == 0
    rmtree(data / "blue")
    assert calibrate(fake_bundle, data, "--multi-label", "--output", everything[1]) == 1

    manifest = Bundle(everything[0]).manifest
    assert len(manifest.class_thresholds) == 4
    several = manifest.history[-1]["several_labels"]
    assert 0 < several["precision"] <= 1
    assert several["recall"] == pytest.approx(several["labels"] * several["precision"])
    assert "1 of 4 classes have no image, first number 2" in capsys.readouterr().err


def test_halves_have_every_class_and_no_image_twice() -> None:
    labels = np.array([0, 1, 0, 1, 0, 2, 2])

    first, second = halves(labels)

    assert sorted([*first, *second]) == list(range(7))
    assert set(labels[first]) == set(labels[second]) == {0, 1, 2}


def test_false_accepts_of_held_out_images_are_as_promised() -> None:
    random = np.random.default_rng(3)
    labels = np.arange(400) % 4
    known = 3 * random.standard_normal((400, 4)) + 4 * np.eye(4)[labels]
    unknown, kinds = 3 * random.standard_normal((1600, 4)), np.arange(1600) % 8

    _, report = fit(known, labels, (unknown, kinds), false_accept=0.05, multi_label=False)

    rejection = report.rejection
    assert rejection is not None
    accepted = rejection.same_unknown_accepted
    assert accepted.low <= 0.05 <= accepted.high  # 400 held-out images
    assert rejection.other_unknown_accepted is not None
    assert rejection.known_accepted.value > 2 * accepted.value
    assert report.held_out.ece_after <= report.held_out.ece_before
