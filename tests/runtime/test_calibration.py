"""What is fitted to labelled images holds on others of the same kind."""

import numpy as np
import pytest

from vlp_deploy.errors import DataError
from vlp_deploy.measuring.calibration import (
    fit_class_thresholds,
    fit_reject_threshold,
    fit_temperature,
)
from vlp_deploy.measuring.metrics import expected_calibration_error, log_probabilities, reliability


def drawn(count: int, *, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 4), `scale` times those whose softmax the labels (n,) were drawn from."""
    random = np.random.default_rng(seed)
    true_logits = 2 * random.standard_normal((count, 4))
    p = np.exp(log_probabilities(true_logits))
    labels = (p.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return (scale * true_logits).astype(np.float32), labels


def calibration_error(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    p = np.exp(log_probabilities(logits, temperature=temperature))
    return expected_calibration_error(reliability(p.max(axis=1), p.argmax(axis=1) == labels))


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_temperature_undoes_a_scale_of_the_logits(scale: float) -> None:
    temperature = fit_temperature(*drawn(4000, scale=scale))

    # the likelihood of 4000 draws knows it to about 2 %
    assert temperature == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_temperature_does_not_raise_the_calibration_error_of_other_images(scale: float) -> None:
    temperature = fit_temperature(*drawn(1000, scale=scale))
    others = drawn(2000, scale=scale, seed=1)

    assert calibration_error(*others, temperature) < calibration_error(*others, 1.0) / 2


def test_perfect_answers_have_no_temperature() -> None:
    with pytest.raises(DataError, match=r"no temperature fits.*all right"):
        fit_temperature(10 * np.eye(4)[[0, 1, 2, 3]], np.arange(4))


def test_threshold_keeps_its_promise_on_average_over_further_images() -> None:
    random = np.random.default_rng(2)
    known = random.beta(5, 2, 300)
    rates = []
    for _ in range(400):
        unknown = random.beta(2, 4, 39)  # 40 · 0.05 = 2: the promise is exact
        threshold = fit_reject_threshold(known, unknown, false_accept=0.05)
        rates.append((random.beta(2, 4, 500) >= threshold).mean())

    assert (unknown >= threshold).sum() == 1
    # the mean of 400 fits, each of which varies by 0.034, is known to 0.0017
    assert np.mean(rates) == pytest.approx(0.05, abs=0.006)


def test_ties_do_not_pass_the_threshold() -> None:
    threshold = fit_reject_threshold(np.array([0.9]), np.full(40, 0.5), false_accept=0.05)

    assert not (np.full(40, 0.5) >= threshold).any()


@pytest.mark.parametrize(
    ("known", "unknown", "complaint"),
    [
        (np.array([0.9]), np.full(10, 0.5), "10 unknown images to fit to cannot tell.*at least 19"),
        (np.array([0.4]), np.full(100, 0.5), "would reject every image"),
    ],
)
def test_impossible_thresholds_say_what_to_do(
    known: np.ndarray, unknown: np.ndarray, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        fit_reject_threshold(known, unknown, false_accept=0.05)


def test_class_thresholds_part_what_can_be_parted() -> None:
    logits = np.array([[3.0, 0.0], [2.0, 5.0], [0.0, 6.0], [1.0, 4.0]])

    thresholds = fit_class_thresholds(logits, np.array([0, 0, 1, 1]), classes=2)

    assert thresholds[0] == 1.5  # between 2.0, which has class 0, and 1.0, which has not
    assert 0 < thresholds[1] < 4  # class 1 has 6 and 4, but 5 has not: F1 is best with all three


def test_equal_scores_are_not_parted() -> None:
    logits = np.array([[1.0], [1.0], [0.0]])

    (threshold,) = fit_class_thresholds(logits, np.array([0, 0, 0]), classes=1)

    assert threshold <= 0


def test_class_thresholds_are_the_best_for_all_classes_together() -> None:
    random = np.random.default_rng(0)

    for _ in range(20):
        labels = np.append(random.integers(0, 2, 5), [0, 1])
        logits = random.standard_normal((7, 2)) + np.eye(2)[labels]
        found = micro_f1(logits, labels, fit_class_thresholds(logits, labels, classes=2))

        cuts = [np.append(np.sort(logits[:, k]), np.inf) for k in range(2)]
        best = max(micro_f1(logits, labels, (a, b)) for a in cuts[0] for b in cuts[1])
        assert found == pytest.approx(best)


def micro_f1(logits: np.ndarray, labels: np.ndarray, thresholds: tuple[float, ...]) -> float:
    given = logits >= np.array(thresholds)
    hits = given[np.arange(len(labels)), labels].sum()
    return 2 * hits / (given.sum() + len(labels))


def test_class_that_cannot_be_told_is_given_to_no_image() -> None:
    labels = np.repeat([0, 1], [90, 10])
    scattered = 37.0 * np.arange(100) % 100  # says nothing of class 1
    logits = np.stack([np.where(labels == 0, 5.0, 0.0), scattered], axis=1)

    thresholds = fit_class_thresholds(logits, labels, classes=2)

    assert thresholds[0] == 2.5
    assert (logits[:, 1] >= thresholds[1]).sum() == 0


def test_class_without_images_is_an_error() -> None:
    with pytest.raises(DataError, match="1 of 3 classes have no image, first number 1"):
        fit_class_thresholds(np.zeros((2, 3)), np.array([0, 2]), classes=3)
