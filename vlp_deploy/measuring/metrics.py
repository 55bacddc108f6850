"""From logits and labels to what is said about a classifier: accuracy, calibration, rejection.

Every figure that is quoted comes with a bound, a 95 % interval: of a share that of Wilson, of a
paired difference a percentile bootstrap over images, with a fixed seed, so that the same logits
give the same report.

Legend: n images, K classes.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.formats.architecture import Record

Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]
Booleans = NDArray[np.bool_]
AnyFloats = NDArray[np.floating]

RESAMPLES = 2000
ECE_BINS = 15  # of equal width, as in Guo et al. (arXiv:1706.04599)
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval


class Interval(Record, frozen=True, kw_only=True):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Bin(Record, frozen=True, kw_only=True):
    """One bar of a reliability diagram."""

    images: int
    confidence: float  # mean over the bin's images
    accuracy: float


class Confusion(Record, frozen=True, kw_only=True):
    """Images of one class that were taken for another."""

    truth: int
    answer: int
    images: int


def log_probabilities(logits: AnyFloats, *, temperature: float = 1.0) -> Doubles:
    """log softmax of logits / temperature over the last axis, (n, K) → (n, K)."""
    scaled = logits.astype(np.float64) / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    normalised: Doubles = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return normalised


def ranks(logits: AnyFloats, labels: Labels) -> Labels:
    """The rank (n,) of each image's true class, 1 is the best; ties and NaN count as wrong."""
    of_truth = logits[np.arange(len(labels)), labels][:, None]
    above: Labels = (~(logits < of_truth)).sum(axis=1)
    return above


def negative_log_likelihood(log_p: Doubles, labels: Labels) -> float:
    """Mean over images, in nats."""
    return float(-log_p[np.arange(len(labels)), labels].mean())


def reliability(confidence: Doubles, correct: Booleans) -> tuple[Bin, ...]:
    """Confidences (n,) and hits (n,) sorted into ECE_BINS bins of equal width; empty ones too."""
    confidence = np.nan_to_num(confidence)  # what is no number is sure of nothing
    edges = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    bins = []
    for index in range(ECE_BINS):
        inside = edges == index
        count = int(inside.sum())
        bins.append(
            Bin(
                images=count,
                confidence=float(confidence[inside].mean()) if count else 0.0,
                accuracy=float(correct[inside].mean()) if count else 0.0,
            )
        )
    return tuple(bins)


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean gap between confidence and accuracy, weighted by images (arXiv:1706.04599, eq. 3)."""
    images = sum(each.images for each in bins)
    return sum(each.images * abs(each.confidence - each.accuracy) for each in bins) / images


def area_under_roc(known: Doubles, unknown: Doubles) -> float:
    """The chance that a random known image scores higher than a random unknown one, ties half.

    Scores (n,) and (m,). 1 is perfect, 0.5 is chance.
    """
    order = np.sort(unknown)
    below = np.searchsorted(order, known, side="left")
    up_to = np.searchsorted(order, known, side="right")
    return float((below + up_to).sum() / (2 * len(known) * len(unknown)))


def false_accepts_at(known: Doubles, unknown: Doubles, *, recall: float = 0.95) -> float:
    """The share of unknown images accepted by the threshold that accepts `recall` of the known.

    At 0.95 this is FPR95.
    """
    ordered = np.sort(known)[::-1]
    threshold = ordered[int(np.ceil(recall * len(ordered))) - 1]
    return float((unknown >= threshold).mean())


def share_interval(hits: Booleans) -> Interval:
    """The share of (n,) that is true, with the binomial 95 % interval of Wilson (1927).

    A bootstrap of no hits at all would be sure that there never are any.
    """
    count, share, z = len(hits), float(hits.mean()), 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return Interval(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half))


def hits_difference(first: Booleans, second: Booleans) -> Interval:
    """Share of hits of `first` minus that of `second`, paired image by image.

    The bootstrap is given two images more, of which each hits one: where no image tells the two
    apart, it would be sure that none ever does (Agresti and Min, 2005, add half an image to each
    cell of the table for the same reason). The share itself is without them.
    """
    apart = first.astype(np.float64) - second.astype(np.float64)
    kinds, counts = np.unique(np.append(apart, [1.0, -1.0]), return_counts=True)
    images = int(counts.sum())
    # how often each kind is drawn, in place of the images
    draws = np.random.default_rng(0).multinomial(images, counts / images, size=RESAMPLES)
    low, high = np.percentile(draws @ kinds / images, LEVEL)
    return Interval(value=float(apart.mean()), low=float(low), high=float(high))


def confusions(answers: Labels, labels: Labels, *, most: int = 20) -> tuple[Confusion, ...]:
    """The pairs of classes that are mixed up most often, ordered pairs, the worst first."""
    wrong = answers != labels
    pairs, counts = np.unique(
        np.stack([labels[wrong], answers[wrong]], axis=1), axis=0, return_counts=True
    )
    worst = np.argsort(-counts, kind="stable")[:most]
    return tuple(
        Confusion(truth=int(pairs[i, 0]), answer=int(pairs[i, 1]), images=int(counts[i]))
        for i in worst
    )


def harmonic_mean(first: float, second: float) -> float:
    """H of base-to-new evaluations; 0 if one of them is 0."""
    return 2 * first * second / (first + second) if first and second else 0.0
