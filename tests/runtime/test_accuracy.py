"""What labelled images say of a classifier, on answers that are known by hand."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.classifier import Classifier
from vlp_deploy.commands.bench import bundle_and_engine
from vlp_deploy.data.dataset import Dataset, Sample
from vlp_deploy.errors import DataError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.accuracy import (
    Mistake,
    accuracy,
    agreement,
    by_domain,
    domain_pattern,
    findings,
    unknown,
)
from vlp_deploy.measuring.evaluation import (
    Evaluator,
    Questions,
    all_logits,
    evaluate,
    labels_in_bundle,
)
from vlp_deploy.measuring.metrics import Bin
from vlp_deploy.measuring.records import OURS, BenchReport, ContenderResult

LOGITS = np.array([[9, 1, 2, 3, 4, 5, 6]] * 3, np.float32)
COLOURS = ("red", "green", "blue", "grey")  # the fake bundle's classes


def dataset(*names: str) -> Dataset:
    samples = tuple(Sample(Path(name), label) for label, name in enumerate(names))
    return Dataset(class_names=names, splits={"all": samples}, source=Path("data"))


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Three drawings of each class, named after their style."""
    return class_folders(tmp_path / "data", COLOURS)


def class_folders(folder: Path, names: tuple[str, ...]) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index, style in enumerate(("flat", "round", "thin")):
            pixels = np.random.default_rng(3 * number + index).integers(0, 256, (40, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{style}.png")
    return folder


def bench(bundle: Path, output: Path, *options: str | Path) -> BenchReport:
    common = ["--engine", "fake", "--no-cold-start", "--seconds", "0", "--batch", "1"]
    words = [str(bundle), *common, *map(str, options), "--output", str(output)]
    assert cli.run(["bench", *words]) == 0
    return msgspec.json.decode((output / "bench.json").read_bytes(), type=BenchReport)


def refused(
    bundle: Path, capsys: pytest.CaptureFixture[str], *options: str | Path, code: int = 1
) -> str:
    words = [str(bundle), "--engine", "fake", "--no-cold-start", "--seconds", "0"]
    assert cli.run(["bench", *words, *map(str, options)]) == code
    return " ".join(capsys.readouterr().err.split())


def test_accuracy_counts_first_and_first_five() -> None:
    found = accuracy(LOGITS, np.array([0, 6, 1]))  # ranks 1, 2 and 7

    assert found.top1.value == pytest.approx(1 / 3)
    assert found.top5.value == pytest.approx(2 / 3)
    assert found.top1.low < 0.1  # three images prove little
    assert found.top1.high > 0.7


def test_accuracy_gives_no_credit_for_ties() -> None:
    assert accuracy(np.zeros((4, 6), np.float32), np.zeros(4, np.int64)).top5.value == 0


def test_accuracy_of_nan_is_nothing() -> None:
    logits = np.full((3, 7), np.nan, np.float32)
    logits[1] = LOGITS[0]
    logits[1, 3] = np.nan  # may be the best, for all that is known

    found = accuracy(logits, np.array([0, 0, 1]))

    assert found.top1.value == 0
    assert found.top5.value == pytest.approx(1 / 3)


def test_temperature_changes_likelihood_and_calibration_only() -> None:
    labels = np.array([0, 6, 1])

    sharp, flat = (accuracy(LOGITS, labels, temperature=each) for each in (1.0, 100.0))

    assert sharp.top1 == flat.top1
    assert sharp.ece == pytest.approx(1 / (1 + np.exp([-8, -7, -6, -5, -4, -3]).sum()) - 1 / 3)
    assert flat.nll < np.log(7) + 0.1 < sharp.nll


def test_agreement_names_the_largest_difference_and_bounds_the_loss() -> None:
    labels, other = np.array([0, 6, 1]), LOGITS.copy()
    other[2, 1] += 100  # the third image is right with it

    found = agreement(LOGITS, other, labels)

    assert found.max_logit_difference == 100
    assert found.same_top1 == 2
    assert found.top1_difference is not None
    assert found.top1_difference.value == pytest.approx(-1 / 3)
    assert found.top1_difference.low < -1 / 3 < found.top1_difference.high


def test_few_images_that_are_all_right_promise_no_accuracy_of_one() -> None:
    top1 = accuracy(LOGITS, np.array([0, 0, 0])).top1

    assert top1.value == top1.high == 1
    assert top1.low < 0.5  # 3 of 3, Wilson: 0.44


def test_a_classifier_differs_from_itself_by_nothing_that_was_seen() -> None:
    difference = agreement(LOGITS, LOGITS, np.array([0, 6, 1])).top1_difference

    assert difference is not None
    assert difference.low < difference.value == 0 < difference.high  # of three images


def test_findings_name_classes_and_the_images_that_were_mistaken() -> None:
    samples = [Sample(Path(name), label) for name, label in (("a", 0), ("b", 0), ("c", 1))]
    logits = np.array([[2, 1, 0], [0, 3, 1], [0, 3, 1]], np.float32)

    found = findings(logits, samples, ["cat", "dog", "owl"], temperature=1.0)

    assert [(each.name, each.right, each.images) for each in found.classes] == [
        ("cat", 1, 2),
        ("dog", 1, 1),
    ]
    assert found.mistakes == (
        Mistake(truth="cat", answer="dog", images=1, truth_example="b", answer_example="c"),
    )
    assert sum(each.images for each in found.bins) == 3


def test_a_class_without_images_has_no_example() -> None:
    logits = np.array([[0, 1]], np.float32)

    found = findings(logits, [Sample(Path("a"), 0)], ["cat", "dog"], temperature=1.0)

    assert found.mistakes[0].answer_example == ""


def test_domains_are_what_the_pattern_finds() -> None:
    samples = [Sample(Path(f"{name}.png"), 0) for name in ("x/flat", "y/thin", "z/flat")]

    shares = by_domain(np.array([True, True, False]), samples, domain_pattern(r"/(\w+)\.png$"))

    assert [(each.name, each.images, each.top1.value) for each in shares] == [
        ("flat", 2, 0.5),
        ("thin", 1, 1.0),
    ]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(", "is no regular expression"), ("flat", "has 0 groups"), ("(a)(b)", "has 2 groups")],
)
def test_patterns_without_one_group_are_refused(pattern: str, reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        domain_pattern(pattern)


def test_an_image_without_domain_is_named() -> None:
    with pytest.raises(DataError, match=r"finds no domain in y/thin\.png"):
        by_domain(np.array([True]), [Sample(Path("y/thin.png"), 0)], domain_pattern("(flat)"))


def test_unknown_images_are_counted_at_every_threshold() -> None:
    known, strangers = np.array([0.9, 0.8, 0.4]), np.array([0.5, 0.1])

    found = unknown(known, strangers)

    assert found.auroc == pytest.approx(5 / 6)
    assert found.fpr95 == 0.5
    assert (0.0, 1 / 3) in found.accepted
    assert (0.5, 1.0) in found.accepted
    assert found.accepted[0] == (1.0, 1.0)
    assert found.accepted[-1] == (0.0, 0.0)


def test_labels_are_counted_in_the_bundles_classes() -> None:
    samples = labels_in_bundle(dataset("green", "red"), ["red", "blue", "green"], advice="")

    assert [sample.label for sample in samples] == [2, 0]


def test_labels_know_their_class_in_other_capitals_and_spacing() -> None:
    samples = labels_in_bundle(dataset("Red Panda", "owl"), ["owl", "red_panda"], advice="")

    assert [sample.label for sample in samples] == [1, 0]


def test_classes_that_the_bundle_lacks_are_named() -> None:
    with pytest.raises(DataError, match=r"2 classes .* first 'cat'.*--data-classes"):
        labels_in_bundle(dataset("cat", "red", "dog"), ["red"], advice="Add --data-classes")


def test_data_without_test_images_is_refused() -> None:
    empty = Dataset(class_names=("red", "blue"), splits={"test": ()}, source=Path("data"))

    with pytest.raises(DataError, match="no image in its test split"):
        labels_in_bundle(empty, ["red", "blue"], advice="")


class SeesItsBatch:
    """A classifier of two classes whose answers are a whole batch's."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        self.sizes.append(len(pixels))
        return pixels.reshape(len(pixels), -1)[:, :2].astype(np.float32)


@pytest.mark.parametrize(("batch", "sizes"), [(None, [3]), (2, [2, 2]), (4, [4])])
def test_a_fixed_batch_is_always_full(
    batch: int | None, sizes: list[int], fake_bundle: Path, colours: Path
) -> None:
    contender = SeesItsBatch()

    logits = all_logits(
        contender,
        [Sample(path=colours / "red" / "flat.png", label=0)] * 3,
        Bundle(fake_bundle).manifest.preprocessing,
        progress=lambda text, n: None,
        batch=batch,
    )

    assert contender.sizes == sizes
    assert logits.shape == (3, 2)


def test_base_and_new_classes_are_classified_among_themselves(
    fake_bundle: Path, colours: Path
) -> None:
    classifier = Classifier.load(fake_bundle, engine="fake")
    samples = [Sample(colours / name / "flat.png", label) for label, name in enumerate(COLOURS)]
    evaluator = Evaluator.of(Bundle(fake_bundle), lambda text, n: None, batch=2)

    _, found = evaluate(
        [ContenderResult(name=OURS, latencies=())],
        {OURS: classifier},
        classifier,
        Questions(samples=samples, base=["Red", "green"]),
        evaluator,
    )

    both = found.base_to_new
    assert both is not None
    logits = evaluator.logits("ours", classifier, samples)
    for share, kept in ((both.base, [0, 1]), (both.new, [2, 3])):
        among = logits[np.ix_(kept, kept)].argmax(axis=1)
        assert share.top1.value == (among == [0, 1]).mean()
        assert (share.images, share.classes) == (2, 2)


def test_bench_tells_everything_that_it_is_asked(
    fake_bundle: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers = class_folders(tmp_path / "strangers", ("violet", "orange"))
    other = class_folders(tmp_path / "other", ("cat", "dog", "owl"))
    (tmp_path / "base.txt").write_text("red\ngreen\n")
    asked = ["--unknown", strangers, "--domain", r"(\w+)\.png$", "--transfer", other]
    asked += ["--base-classes", tmp_path / "base.txt", "--beside", fake_twin(fake_bundle)]

    report = bench(fake_bundle, tmp_path / "report", "--data", colours, *asked)

    ours, twin = report.contenders
    found = report.findings
    assert found is not None
    assert ours.accuracy == twin.accuracy
    assert twin.agreement is not None
    assert twin.agreement.same_top1 == 12
    assert (twin.name, twin.engine, twin.precision) == ("twin", "fake", "fp32")
    assert [share.name for share in found.domains] == ["flat", "round", "thin"]
    assert [share.name for share in found.transfer] == ["other"]
    assert found.transfer[0].classes == 3
    assert found.base_to_new is not None
    assert found.unknown is not None
    assert found.unknown.images == 6
    shown = " ".join(capsys.readouterr().out.split())
    for said in ("of 12 images", "beside ┃", "AUROC", "harmonic mean", "round"):
        assert said in shown


def fake_twin(bundle: Path) -> Path:
    twin = bundle.parent / "twin"
    twin.symlink_to(bundle, target_is_directory=True)
    return twin


def test_classes_of_the_bundle_are_base_where_the_data_has_others(
    fake_bundle: Path, tmp_path: Path
) -> None:
    mixed = class_folders(tmp_path / "mixed", ("Red", "blue", "cat", "dog", "owl"))

    report = bench(fake_bundle, tmp_path / "report", "--data", mixed, "--data-classes")

    assert report.findings is not None
    both = report.findings.base_to_new
    assert both is not None
    assert (both.base.classes, both.new.classes) == (2, 3)


def test_one_class_more_makes_no_halves(fake_bundle: Path, tmp_path: Path) -> None:
    mixed = class_folders(tmp_path / "mixed", ("red", "blue", "cat"))

    report = bench(fake_bundle, tmp_path / "report", "--data", mixed, "--data-classes")

    assert report.findings is not None
    assert report.findings.base_to_new is None


def test_a_half_of_one_class_is_refused(
    fake_bundle: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.txt").write_text("red\ngreen\nblue\n")

    said = refused(fake_bundle, capsys, "--data", colours, "--base-classes", tmp_path / "base.txt")

    assert "have 1 new classes" in said


def test_questions_without_data_are_refused(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Give some with --data" in refused(fake_bundle, capsys, "--domain", "(x)")


def test_unknown_images_of_a_known_class_are_refused(
    fake_bundle: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(fake_bundle, capsys, "--data", colours, "--unknown", colours)

    assert "has 4 classes that the bundle knows" in said


def test_an_unreadable_image_is_named_before_anything_is_measured(
    fake_bundle: Path,
    colours: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (colours / "red" / "text.png").write_text("no image")
    monkeypatch.setattr("vlp_deploy.commands.bench_run.measure_contenders", None)  # would raise

    said = refused(fake_bundle, capsys, "--data", colours)

    assert "1 of 13 images cannot be read" in said
    assert "red/text.png" in said


def test_a_bundle_beside_may_name_its_engine() -> None:
    assert bundle_and_engine("x/a@openvino", "onnx") == (Path("x/a"), "openvino")
    assert bundle_and_engine("x/a@b", "onnx") == (Path("x/a@b"), "onnx")


def test_two_contenders_of_one_name_are_refused(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = fake_twin(fake_bundle)

    said = refused(fake_bundle, capsys, "--beside", twin, "--beside", twin)

    assert "a contender named 'twin' already" in said


def test_bins_are_those_of_the_bundles_temperature(
    fake_bundle: Path, colours: Path, tmp_path: Path
) -> None:
    report = bench(fake_bundle, tmp_path / "report", "--data", colours)

    assert report.findings is not None
    assert report.findings.temperature == Bundle(fake_bundle).manifest.temperature
    assert all(isinstance(each, Bin) for each in report.findings.bins)
    assert sum(each.images for each in report.findings.bins) == 12
