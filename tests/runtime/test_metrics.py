"""Figures about classifiers against their definitions, spelled out image by image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_deploy.measuring import metrics
from vlp_deploy.measuring.metrics import Confusion

RNG = np.random.default_rng(5)


def test_log_probabilities_are_those_of_softmax_at_the_temperature() -> None:
    logits = np.array([[1.0, 2.0, 4.0], [800.0, 800.0, -800.0]])

    log_p = metrics.log_probabilities(logits, temperature=2.0)

    weights = np.exp([0.5, 1.0, 2.0])
    np.testing.assert_allclose(np.exp(log_p[0]), weights / weights.sum())
    np.testing.assert_allclose(np.exp(log_p[1]), [0.5, 0.5, 0.0])


def test_ties_and_nan_are_not_right() -> None:
    logits = np.array([[1.0, 1.0, 0.0], [np.nan, 2.0, 1.0], [3.0, 2.0, 1.0]])

    ranks = metrics.ranks(logits, np.array([0, 1, 1]))

    assert ranks.tolist() == [2, 2, 2]


def test_calibration_error_of_a_sure_and_half_right_classifier_is_a_half() -> None:
    confidence, correct = np.full(10, 1.0), np.arange(10) < 5

    bins = metrics.reliability(confidence, correct)

    assert bins[-1].images == 10
    assert metrics.expected_calibration_error(bins) == pytest.approx(0.5)


def test_calibration_error_weighs_bins_by_their_images() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.3])
    correct = np.array([True, True, False, True])

    error = metrics.expected_calibration_error(metrics.reliability(confidence, correct))

    assert error == pytest.approx(0.75 * abs(0.9 - 2 / 3) + 0.25 * 0.7)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
)
def test_area_under_roc_counts_pairs(known: list[int], unknown: list[int]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in known for b in unknown]

    area = metrics.area_under_roc(np.array(known, float), np.array(unknown, float))

    assert area == pytest.approx(sum(pairs) / len(pairs))


def test_false_accepts_are_counted_where_95_percent_of_the_known_pass() -> None:
    known = np.arange(1, 101) / 100  # 95 of them are at least 0.06
    unknown = np.array([0.01, 0.05, 0.06, 0.5])

    assert metrics.false_accepts_at(known, unknown) == 0.5
    assert metrics.false_accepts_at(known, unknown, recall=1.0) == 0.75 + 0.25


def test_interval_of_a_share_is_that_of_the_binomial() -> None:
    hits = np.arange(400) < 100

    interval = metrics.share_interval(hits)

    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert interval.value == 0.25
    # Wilson's interval is moved towards a half by z^2 (1/2 - p) / n, 0.0024
    assert interval.low == pytest.approx(0.25 - half, abs=0.003)
    assert interval.high == pytest.approx(0.25 + half, abs=0.003)


def test_paired_difference_is_far_surer_than_two_shares() -> None:
    first = RNG.random(500) < 0.7
    second = first.copy()
    second[:5] = ~second[:5]

    interval = metrics.hits_difference(first, second)

    assert interval.value == pytest.approx(first.mean() - second.mean())
    assert interval.high - interval.low < 0.03  # each share alone: 0.08
    assert interval.low <= interval.value <= interval.high


def test_no_difference_on_few_images_is_no_proof_of_none() -> None:
    hits = RNG.random(300) < 0.7

    interval = metrics.hits_difference(hits, hits)

    # with none of n images apart, up to about 3 / n of all may be ("rule of three")
    assert interval.value == 0
    assert 2 / 300 <= interval.high <= 4 / 300
    assert interval.low == -interval.high


def test_worst_confusion_comes_first() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    answers = np.array([1, 1, 2, 1, 0])

    pairs = metrics.confusions(answers, labels, most=2)

    assert pairs[0] == Confusion(truth=0, answer=1, images=2)
    assert len(pairs) == 2
    assert metrics.confusions(labels, labels) == ()


def test_harmonic_mean_of_nothing_is_nothing() -> None:
    assert metrics.harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)
    assert metrics.harmonic_mean(0.5, 0.0) == 0.0


def test_share_of_no_hits_has_an_interval_all_the_same() -> None:
    none = metrics.share_interval(np.zeros(20, bool))
    some = metrics.share_interval(np.arange(100) < 10)

    # Wilson's interval: |p - share| = 1.96 * sqrt(p (1 - p) / n) at both ends
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1.96 * np.sqrt(none.high * (1 - none.high) / 20), rel=1e-4)
    for end in (some.low, some.high):
        assert abs(end - 0.1) == pytest.approx(1.96 * np.sqrt(end * (1 - end) / 100), rel=1e-4)
