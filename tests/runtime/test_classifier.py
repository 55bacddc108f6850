"""The classifier against its definition, with the fake engine: no inference package is needed."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vlp_deploy
from vlp_deploy import Classifier, Failure, Prediction, VlpError
from vlp_deploy.cache import cache_folder
from vlp_deploy.classifier import softmax
from vlp_deploy.engines.fake import FakeEngine
from vlp_deploy.errors import (
    BundleError,
    ClassListError,
    EngineError,
    ImageError,
    IntegrityError,
)
from vlp_deploy.formats.bundle import NewClasses
from vlp_deploy.formats.fake_bundle import write_fake_bundle
from vlp_deploy.images.preprocess import preprocess
from vlp_deploy.question import Question
from vlp_deploy.tolerance import logit_tolerance


def pictures(count: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), np.uint8))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_kind_of_input_gets_its_answer_in_order(fake_bundle: Path, tmp_path: Path) -> None:
    array = pictures(1)[0]
    image = Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, "PNG")
    (path := tmp_path / "a.png").write_bytes(file.getvalue())
    items = [str(path), "absent.png", path, image, array, file.getvalue(), b"rubbish"]

    answers = Classifier.load(fake_bundle).classify(items)

    assert [type(a) for a in answers] == [Prediction, Failure, *[Prediction] * 4, Failure]
    assert [a.path for a in answers] == [str(path), "absent.png", str(path), *[None] * 4]
    assert answers[1] == Failure(path="absent.png", error="there is no such file")
    good = [a for a in answers if isinstance(a, Prediction)]
    assert len({(a.label, a.probability, a.logit, a.top) for a in good}) == 1


def test_prediction_is_the_softmax_of_the_logits(changed_bundle) -> None:
    classifier = Classifier.load(changed_bundle(temperature=3.0))
    images = pictures(4)
    pixels = np.stack([preprocess(i, classifier.bundle.manifest.preprocessing) for i in images])

    answers = classifier.classify(images, top_k=2)

    for answer, row in zip(answers, classifier.logits(pixels), strict=True):
        scaled = np.exp(row.astype(float) / 3)
        best = np.argsort(-row)[:2]
        assert answer.label == classifier.classes[best[0]]
        assert answer.logit == pytest.approx(row[best[0]], rel=1e-6)
        assert answer.probability == pytest.approx((scaled / scaled.sum())[best[0]], rel=1e-5)
        assert [c.label for c in answer.top] == [classifier.classes[k] for k in best]
        assert answer.top[0].probability == answer.probability


def test_logits_are_scaled_cosines(fake_bundle: Path) -> None:
    classifier = Classifier.load(fake_bundle)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)

    embeddings, logits = classifier.embed(pixels), classifier.logits(pixels)

    assert (embeddings.shape, logits.shape, logits.dtype) == ((3, 16), (3, 4), np.float32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(classifier.class_embeddings, axis=1), 1, rtol=1e-6)
    # float32 sums of 16 terms up to 100
    np.testing.assert_allclose(logits, 100 * embeddings @ classifier.class_embeddings.T, atol=1e-4)


def test_softmax_survives_logits_of_hundreds() -> None:
    np.testing.assert_allclose(softmax(np.array([[800.0, 800.0, -800.0]])), [[0.5, 0.5, 0.0]])


def test_of_equal_logits_the_first_class_wins(fake_bundle: Path) -> None:
    classifier = Classifier.load(fake_bundle).with_classes(["b", "a c", "a\u00adc", "d"])
    classifier._bank.inputs["class_matrix"][:] = 0

    answer = classifier.classify(pictures(1), top_k=9)[0]

    assert [c.label for c in answer.top] == ["b", "a c", "a\u00adc", "d"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_do_not_depend_on_the_batch(fake_bundle: Path, batch_size: int) -> None:
    classifier = Classifier.load(fake_bundle)
    items = [*pictures(20), "absent.jpg", *pictures(3)]

    answers = classifier.classify(items, batch_size=batch_size)

    alone = [classifier.classify([item])[0] for item in items]
    assert [getattr(a, "label", None) for a in answers] == [
        getattr(a, "label", None) for a in alone
    ]
    for answer, expected in zip(answers, alone, strict=True):
        if isinstance(answer, Prediction):
            assert answer.probability == pytest.approx(expected.probability, abs=1e-5)


def test_answers_below_the_threshold_have_no_label(changed_bundle) -> None:
    images = pictures(30)
    plain = Classifier.load(changed_bundle(temperature=50.0)).classify(images)
    threshold = float(np.median([answer.probability for answer in plain]))
    classifier = Classifier.load(changed_bundle(temperature=50.0, reject_threshold=threshold))

    assert classifier.classify(images) == plain  # nobody asked to reject
    for reject in (True, threshold):
        for answer, expected in zip(classifier.classify(images, reject=reject), plain, strict=True):
            kept = expected.probability >= threshold
            assert answer == replace(expected, label=expected.label if kept else None)
    rejected = classifier.classify(images, reject=1.0)
    assert {answer.label for answer in rejected} == {None}
    assert [answer.top for answer in rejected] == [answer.top for answer in plain]


def test_labels_are_all_classes_that_reach_their_thresholds(changed_bundle) -> None:
    images = pictures(30)
    classifier = Classifier.load(changed_bundle())
    pixels = np.stack([preprocess(i, classifier.bundle.manifest.preprocessing) for i in images])
    logits = classifier.logits(pixels)
    # the best class of an image seldom reaches its own, so that the first label is not the top
    thresholds = np.array([*np.percentile(logits[:, :3], 50, axis=0), logits.max() + 1])
    classifier = Classifier.load(changed_bundle(class_thresholds=tuple(map(float, thresholds))))

    answers = classifier.classify(images, multi_label=True)

    counts = set()
    for answer, row in zip(answers, logits, strict=True):
        chosen = [k for k in np.argsort(-row) if row[k] >= np.float32(thresholds[k])]
        assert answer.labels == tuple(classifier.classes[k] for k in chosen)
        assert answer.label == (answer.labels[0] if chosen else None)
        shown = chosen[0] if chosen else row.argmax()
        assert answer.logit == pytest.approx(row[shown], rel=1e-6)
        counts.add(len(chosen))
    assert counts == {0, 1, 2, 3}


def test_thresholds_that_were_not_fitted_to_these_classes_are_refused(changed_bundle) -> None:
    plain = Classifier.load(changed_bundle())
    fitted = Classifier.load(changed_bundle(reject_threshold=0.5, class_thresholds=(0.0,) * 4))
    others = fitted.with_classes(["cat", "dog"])

    for options, flag in (
        ({"reject": True}, "--unknown"),
        ({"multi_label": True}, "--multi-label"),
    ):
        with pytest.raises(BundleError, match=f"vlp calibrate .* {flag}"):
            plain.classify(pictures(1), **options)
        with pytest.raises(BundleError, match="cannot be used with other classes"):
            others.classify(pictures(1), **options)
    assert [answer.label for answer in others.classify(pictures(2), reject=1.0)] == [None, None]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"reject_below": 1.5}, "expected a probability"),
        ({"reject_below": float("nan")}, "expected a probability"),
        ({"reject_below": 0.5, "multi_label": True}, "expected it without reject_below"),
    ],
)
def test_questions_that_make_no_sense_are_refused(options, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Question(**options)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(fake_bundle: Path, options) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        Classifier.load(fake_bundle).classify([], **options)


def test_no_input_gives_no_answer(fake_bundle: Path) -> None:
    assert Classifier.load(fake_bundle).classify([]) == []


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((3, 32, 32), np.uint8), np.zeros((1, 3, 32, 33), np.uint8), np.zeros((1, 3, 32, 32))],
)
def test_pixels_of_another_shape_are_refused(fake_bundle: Path, pixels) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \(B, 3, 32, 32\)"):
        Classifier.load(fake_bundle).logits(pixels)


def test_stream_reads_only_a_little_ahead(fake_bundle: Path) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((8, 8, 3), np.uint8)

    stream = Classifier.load(fake_bundle).stream(endless(), Question(batch_size=4))
    for _ in range(9):
        next(stream)
    stream.close()

    assert taken <= 9 + 4 * 4 + 8  # two batches ahead, a batch in hand, and the threads' own


def test_failures_among_inputs_pass_through(fake_bundle: Path) -> None:
    failure = Failure(path="folder", error="it is locked")

    answers = list(Classifier.load(fake_bundle).stream([failure, *pictures(1), failure]))

    assert [answers[0], answers[2]] == [failure, failure]
    assert isinstance(answers[1], Prediction)


def test_many_threads_share_a_classifier(fake_bundle: Path) -> None:
    classifier = Classifier.load(fake_bundle)
    images = pictures(6)
    expected = classifier.classify(images)
    found: list[object] = []

    def work() -> None:
        found.append(classifier.classify(images))
        found.append(classifier.with_classes(list(classifier.classes)).classify(images))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [expected] * 8


def test_new_classes_answer_as_the_baked_ones_did(fake_bundle: Path, tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "other", ("cat", "red panda"), templates=("one {}.", "two {}s."))
    baked = Classifier.load(tmp_path / "other")

    new = Classifier.load(fake_bundle).with_classes(["cat", "red panda"], ["one {}.", "two {}s."])

    assert new.classes == ("cat", "red panda")
    np.testing.assert_array_equal(new.class_embeddings, baked.class_embeddings)
    assert new.classify(pictures(3)) == baked.classify(pictures(3))


def test_new_classes_leave_the_first_classifier_alone(fake_bundle: Path) -> None:
    classifier = Classifier.load(fake_bundle)
    before = classifier.classify(pictures(2))

    classifier.with_classes(["x", ["y", "yy"]])

    assert classifier.classify(pictures(2)) == before


def test_synonyms_are_averaged_and_the_first_is_the_label(fake_bundle: Path) -> None:
    classifier = Classifier.load(fake_bundle)
    parts = classifier.with_classes(["cat", "kitty"]).class_embeddings
    mean = parts.sum(axis=0)

    both = classifier.with_classes([["cat", "kitty"]])

    assert both.classes == ("cat",)
    np.testing.assert_allclose(both.class_embeddings[0], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "templates", "complaint"),
    [
        ([], None, "no classes"),
        (["cat", "Cat"], None, "'Cat' stands twice, at position 0 and position 1"),
        (["cat", ["dog", "cat"]], None, "stands twice"),
        (["cat", []], None, "class 1 is"),
        (["\u2003"], None, "no readable characters"),
        (["word " * 80], None, "this model reads 77"),
        (["cat"], [], "no templates"),
        (["cat"], ["a photo"], "exactly once"),
    ],
)
def test_unusable_classes_are_refused(fake_bundle, names, templates, complaint: str) -> None:
    with pytest.raises(ClassListError, match=complaint):
        Classifier.load(fake_bundle).with_classes(names, templates)


def test_one_text_is_no_list_of_classes_or_templates(fake_bundle: Path) -> None:
    classifier = Classifier.load(fake_bundle)

    with pytest.raises(ClassListError, match=r"class_names is the text 'cat'.*\['cat'\]"):
        classifier.with_classes("cat")
    with pytest.raises(ClassListError, match=r"templates is the text 'a \{\}'"):
        classifier.with_classes(["cat"], "a {}")


def test_bundle_that_forbids_new_classes_says_why(changed_bundle) -> None:
    reason = "each class has a context of its own"
    classifier = Classifier.load(
        changed_bundle(new_classes=NewClasses(allowed=False, reason=reason))
    )

    with pytest.raises(BundleError, match=f"only its own classes: {reason}"):
        classifier.with_classes(["cat"])


def test_learned_prompt_takes_no_other_template(changed_bundle, fake_bundle: Path) -> None:
    layout = vlp_deploy.formats.architecture.TextLayout(tokens=2)
    classifier = Classifier.load(changed_bundle(text_layout=layout))

    with pytest.raises(ClassListError, match="prompt was learned"):
        classifier.with_classes(["cat"], ["a photo of a {}."])


def test_text_graph_is_read_only_for_new_classes(fake_bundle: Path) -> None:
    flip_byte(fake_bundle / "text.fake")

    classifier = Classifier.load(fake_bundle)

    assert len(classifier.classify(pictures(2))) == 2
    with pytest.raises(IntegrityError, match=r"text\.fake has changed"):
        classifier.with_classes(["cat"])


def test_class_embeddings_come_from_the_cache_the_second_time(fake_bundle: Path) -> None:
    first = Classifier.load(fake_bundle).with_classes(["cat", "dog"])
    flip_byte(fake_bundle / "text.fake")  # cannot be loaded again

    second = Classifier.load(fake_bundle).with_classes(["cat", "dog"])

    np.testing.assert_array_equal(second.class_embeddings, first.class_embeddings)
    for other in (["dog", "cat"], ["cat"], [["cat", "dog"]]):
        with pytest.raises(IntegrityError):
            second.with_classes(other)
    with pytest.raises(IntegrityError):
        second.with_classes(["cat", "dog"], ["one {}."])


@pytest.mark.parametrize("damage", [flip_byte, lambda p: p.write_bytes(b""), Path.unlink])
def test_damaged_cache_is_built_again(fake_bundle: Path, damage: Callable[[Path], None]) -> None:
    classifier = Classifier.load(fake_bundle)
    expected = classifier.with_classes(["cat", "dog"]).class_embeddings
    (entry,) = (cache_folder() / "classes").iterdir()
    damage(entry)

    again = classifier.with_classes(["cat", "dog"]).class_embeddings

    np.testing.assert_array_equal(again, expected)


def test_cache_that_cannot_be_written_costs_nothing_but_time(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "file" / "cache"))

    classifier = Classifier.load(fake_bundle).with_classes(["cat", "dog"])

    assert len(classifier.classify(pictures(2))) == 2


def test_engine_is_proven_once_for_a_bundle(
    fake_bundle: Path, changed_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    Classifier.load(fake_bundle)
    break_engine(monkeypatch, lambda outputs: outputs["logits"].__iadd__(0.01))

    Classifier.load(fake_bundle)  # has passed here before

    with pytest.raises(EngineError, match="own answers"):
        Classifier.load(changed_bundle(temperature=2.0))


def test_engine_is_proven_on_each_device(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Classifier.load(fake_bundle)
    break_engine(monkeypatch, lambda outputs: outputs["logits"].__iadd__(0.01))

    with pytest.raises(EngineError, match="own answers"):
        Classifier.load(fake_bundle, device="cuda")


def test_tolerance_follows_the_logit_scale() -> None:
    assert logit_tolerance(100) == pytest.approx(2e-3)
    assert logit_tolerance(10) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (lambda outputs: outputs["logits"].__iadd__(0.003), r"a logit differs by 3\.\d+e-03"),
        (lambda outputs: outputs["logits"].__imul__(np.nan), "NaN or infinity"),
        (lambda outputs: outputs.update(embedding=outputs["embedding"][:, None]), "shapes are"),
        (
            lambda outputs: outputs["logits"].__iadd__(len(outputs["logits"]) == 1),
            r"differs.*\(batch 1\)",
        ),
    ],
)
def test_engine_with_wrong_answers_is_refused_every_time(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, fault, complaint: str
) -> None:
    break_engine(monkeypatch, fault)

    for _ in range(2):
        with pytest.raises(EngineError, match=complaint) as refusal:
            Classifier.load(fake_bundle)
        assert "fake" in str(refusal.value)


def test_differences_within_tolerance_pass(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_engine(monkeypatch, lambda outputs: outputs["logits"].__iadd__(0.0015))

    Classifier.load(fake_bundle)


def test_lower_precision_is_held_to_its_cosine(
    changed_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).standard_normal(16) * 0.03  # cosine about 0.993

    def blur(outputs) -> None:
        blurred = outputs["embedding"] + noise
        outputs["embedding"] = blurred / np.linalg.norm(blurred, axis=1, keepdims=True)

    break_engine(monkeypatch, blur)

    Classifier.load(changed_bundle(precision="int8"))
    with pytest.raises(EngineError, match=r"a cosine is 0\.99\d\d, needed is 0\.999"):
        Classifier.load(changed_bundle(precision="fp16"))


def break_engine(monkeypatch: pytest.MonkeyPatch, fault: Callable[[dict], object]) -> None:
    right = FakeEngine._run

    def wrong(self, inputs):
        outputs = right(self, inputs)
        fault(outputs)
        return outputs

    monkeypatch.setattr(FakeEngine, "_run", wrong)


def test_bundle_is_found_by_path_then_by_variable(
    fake_bundle: Path, changed_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = changed_bundle(temperature=5.0)
    monkeypatch.setenv("VLP_BUNDLE", str(other))

    assert Classifier.load().bundle.path == other
    assert Classifier.load(str(fake_bundle)).bundle.path == fake_bundle


@pytest.mark.parametrize(
    "name", ["image.fake", "classes.safetensors", "manifest.json", "golden.npz"]
)
def test_damaged_file_is_named_at_load(fake_bundle: Path, name: str) -> None:
    flip_byte(fake_bundle / name)

    with pytest.raises(IntegrityError, match=name):
        Classifier.load(fake_bundle)


def test_absent_bundle_and_engine_are_explained(fake_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        Classifier.load(tmp_path / "absent")
    with pytest.raises(EngineError, match="Did you mean 'fake'"):
        Classifier.load(fake_bundle, "fakes")
    with pytest.raises(EngineError, match="threads is 0"):
        Classifier.load(fake_bundle, threads=0)


def test_the_public_door_is_what_it_says() -> None:
    assert vlp_deploy.__all__ == sorted(vlp_deploy.__all__)
    assert {name for name in vlp_deploy.__all__ if hasattr(vlp_deploy, name)} == {
        *vlp_deploy.__all__
    }
    assert issubclass(VlpError, Exception)
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        vlp_deploy.Clasifier  # noqa: B018


def test_home_is_the_last_place_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", f"{os.sep}caches")
    assert cache_folder() == Path("/caches/vlp-deploy")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", f"{os.sep}home{os.sep}me")
    assert cache_folder() == Path("/home/me/.cache/vlp-deploy")
