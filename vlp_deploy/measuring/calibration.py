"""From labelled images to probabilities that mean what they say, and to "none of these".

Temperature scaling (Guo et al., arXiv:1706.04599, section 4.2): one number that divides all logits,
fitted to the likelihood. Rejection: the smallest probability that is still an answer, fitted to the
share of images of no class that may pass. Several labels an image: a threshold for each class.

Legend: n images with a class, m images of no class, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlp_deploy.errors import DataError
from vlp_deploy.measuring.metrics import (
    AnyFloats,
    Booleans,
    Doubles,
    Labels,
    log_probabilities,
    negative_log_likelihood,
)

TEMPERATURES = (0.01, 100.0)
GOLDEN = (5**0.5 - 1) / 2
STEPS = 60  # of golden-section search: the bracket shrinks by 10^12


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted. `reject_threshold` is a probability, None without unknown images."""

    temperature: float
    reject_threshold: float | None
    thresholds: tuple[float, ...]  # a logit for each class; empty if not asked for


def fit_temperature(logits: AnyFloats, labels: Labels) -> float:
    """The temperature of the highest likelihood of logits (n, K) and labels (n,).

    Raises DataError where none is best: if every image is right by any margin, the likelihood only
    grows while the temperature falls, and the fit would promise certainty.
    """

    def loss(log_temperature: float) -> float:
        log_p = log_probabilities(logits, temperature=float(np.exp(log_temperature)))
        return negative_log_likelihood(log_p, labels)

    low, high = np.log(TEMPERATURES)
    best = _minimise(loss, float(low), float(high))  # the loss is unimodal in the temperature
    temperature = float(np.exp(best))
    if temperature < 2 * TEMPERATURES[0] or temperature > TEMPERATURES[1] / 2:
        kind = "all right" if temperature < 1 else "hardly better than chance"
        raise DataError(
            f"no temperature fits: the likelihood still grows at {temperature:.3g}. The "
            f"{len(labels)} images are {kind}. Give more images, hard ones too"
        )
    return temperature


def fit_reject_threshold(known: Doubles, unknown: Doubles, *, false_accept: float) -> float:
    """The lowest probability that lets at most `false_accept` of unknown images pass, on average.

    `known` (n,) and `unknown` (m,) are the largest probabilities of images with a class and of
    none. The threshold lies just above the k-th highest unknown one, k = ⌊false_accept (m + 1)⌋: a
    further image of the same kind is above it with a chance of k / (m + 1), as each of the m + 1
    is equally likely to be among the k highest (split conformal prediction, arXiv:1604.04173).
    Raises DataError if there are too few unknown images, or if no answer would be left.
    """
    pass_at_most = int(np.floor(false_accept * (len(unknown) + 1) + 1e-9))  # k
    if pass_at_most < 1:
        raise DataError(
            f"{len(unknown)} unknown images to fit to cannot tell a false-accept rate of "
            f"{false_accept:.1%}: it takes at least {int(np.ceil(1 / false_accept - 1))}. Give "
            "more (of those given, half or less are fitted to), or a higher --false-accept"
        )
    threshold = float(np.nextafter(np.sort(unknown)[-pass_at_most], np.inf))
    if not (known >= threshold).any():
        raise DataError(
            f"a threshold of {threshold:.4f} would reject every image with a class as well. "
            "The unknown images look more like the classes than the labelled ones do; check both, "
            "or allow a higher --false-accept"
        )
    return threshold


def fit_class_thresholds(logits: AnyFloats, labels: Labels, *, classes: int) -> tuple[float, ...]:
    """For each class the logit from which on it is said to be there: the best F1 on (n, K).

    F1 is that of all classes together (micro): the best of each by itself would give a class that
    the model cannot tell to nearly every image (arXiv:1402.1892, section 5). A label pays if its
    chance to be right is above F1 / 2 (section 3), so F1 and thresholds are found by turns, each
    turn raising F1 (Dinkelbach 1967). Raises DataError for a class without an image, whose
    threshold nobody could know.
    """
    images = np.bincount(labels, minlength=classes)
    if (empty := np.flatnonzero(images == 0)).size:
        raise DataError(
            f"{len(empty)} of {classes} classes have no image, first number {empty[0]}: a "
            "threshold for each class needs images of each. Add some, or leave out --multi-label"
        )
    positive = labels[:, None] == np.arange(classes)  # (n, K)
    best = 0.0
    while True:
        thresholds = [_threshold(logits[:, k], positive[:, k], best / 2) for k in range(classes)]
        given = logits >= np.array(thresholds)
        f1 = float(2 * (given & positive).sum() / (given.sum() + len(labels)))
        if f1 <= best:
            return tuple(thresholds)
        best = f1


def _threshold(scores: AnyFloats, positive: Booleans, price: float) -> float:
    """Where most is gained for scores (n,) if a hit is worth 1 and every label costs `price`.

    In the middle of the gap between the last score above and the first below.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    gains = np.cumsum(positive[order] - price)  # of the 1, 2, … n highest scores
    # equal scores cannot be parted: only the last of them is a place to cut
    gains[:-1][ordered[:-1] == ordered[1:]] = -np.inf
    best = int(gains.argmax())
    if gains[best] <= 0:
        return float(np.nextafter(ordered[0], np.inf))  # no label pays
    below = ordered[best + 1] if best + 1 < len(ordered) else ordered[best]
    return float((ordered[best] + below) / 2)


def _minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search for the minimum of a unimodal function between two bounds."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2
