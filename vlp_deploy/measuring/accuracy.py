"""From logits of labelled images to what is said of a classifier: right, sure, and where it errs.

Legend: n labelled images, m images of no class, K classes.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlp_deploy.data.dataset import Sample
from vlp_deploy.errors import DataError
from vlp_deploy.formats.architecture import Record
from vlp_deploy.measuring.metrics import (
    AnyFloats,
    Bin,
    Booleans,
    Doubles,
    Interval,
    Labels,
    area_under_roc,
    confusions,
    expected_calibration_error,
    false_accepts_at,
    harmonic_mean,
    hits_difference,
    log_probabilities,
    negative_log_likelihood,
    ranks,
    reliability,
    share_interval,
)

ROC_POINTS = 101
MISTAKES = 12  # pairs of classes that are told


class Accuracy(Record, frozen=True, kw_only=True):
    """Share of images whose class is first, or among the first five; likelihood and calibration.

    `nll` is in nats. Ties and NaN count as wrong.
    """

    images: int
    top1: Interval
    top5: Interval
    nll: float
    ece: float


class Agreement(Record, frozen=True, kw_only=True):
    """How far a contender's logits are from the bundle's, over all test images.

    `top1_difference` is the bundle's accuracy minus the contender's, paired image by image.
    """

    images: int
    max_logit_difference: float
    same_top1: int
    top1_difference: Interval | None = None


class ClassAccuracy(Record, frozen=True, kw_only=True):
    """How many images of one class were right."""

    name: str
    images: int
    right: int


class Mistake(Record, frozen=True, kw_only=True):
    """Images of one class that were taken for another; examples of both are paths of images.

    `answer_example` is empty where the data has no image of that class.
    """

    truth: str
    answer: str
    images: int
    truth_example: str
    answer_example: str


class Share(Record, frozen=True, kw_only=True):
    """Top-1 over a part of the images, or over another data set."""

    name: str
    images: int
    classes: int
    top1: Interval


class BaseToNew(Record, frozen=True, kw_only=True):
    """Base classes among themselves, new ones among themselves, and the harmonic mean of both."""

    base: Share
    new: Share
    harmonic_mean: float


class Unknown(Record, frozen=True, kw_only=True):
    """How known and unknown images are told apart by their largest probability.

    `accepted` has points of the curve: share of unknown and of known images above a threshold.
    """

    images: int
    auroc: float
    fpr95: float
    accepted: tuple[tuple[float, float], ...]


class Findings(Record, frozen=True, kw_only=True):
    """What else the images say of the bundle itself."""

    temperature: float
    bins: tuple[Bin, ...]
    classes: tuple[ClassAccuracy, ...]  # those with images
    mistakes: tuple[Mistake, ...]  # the most frequent first
    domains: tuple[Share, ...] = ()
    base_to_new: BaseToNew | None = None
    transfer: tuple[Share, ...] = ()  # other data sets, into their own classes
    unknown: Unknown | None = None


def accuracy(logits: AnyFloats, labels: Labels, *, temperature: float = 1.0) -> Accuracy:
    """What logits (n, K) and labels (n,) say, with probabilities at `temperature`."""
    rank = ranks(logits, labels)
    log_p = log_probabilities(logits, temperature=temperature)
    return Accuracy(
        images=len(labels),
        top1=share_interval(rank <= 1),
        top5=share_interval(rank <= 5),
        nll=negative_log_likelihood(log_p, labels),
        ece=expected_calibration_error(reliability(np.exp(log_p.max(axis=1)), rank <= 1)),
    )


def agreement(bundle: AnyFloats, other: AnyFloats, labels: Labels) -> Agreement:
    """Compare a contender's logits (n, K) with the bundle's."""
    return Agreement(
        images=len(bundle),
        max_logit_difference=float(np.abs(bundle - other).max()),
        same_top1=int((bundle.argmax(axis=1) == other.argmax(axis=1)).sum()),
        top1_difference=hits_difference(ranks(bundle, labels) <= 1, ranks(other, labels) <= 1),
    )


def findings(
    logits: AnyFloats,
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    temperature: float,
    domain: re.Pattern[str] | None = None,
) -> Findings:
    """What logits (n, K) of labelled samples say beyond one figure. Raises DataError for a
    `domain` that does not fit every path."""
    labels = np.array([sample.label for sample in samples])
    right, answers = ranks(logits, labels) <= 1, logits.argmax(axis=1)
    return Findings(
        temperature=temperature,
        bins=reliability(confidence(logits, temperature), right),
        classes=by_class(right, labels, classes),
        mistakes=mistakes(answers, samples, classes),
        domains=by_domain(right, samples, domain) if domain else (),
    )


def confidence(logits: AnyFloats, temperature: float) -> Doubles:
    """The largest probability (n,) of logits (n, K)."""
    largest: Doubles = np.exp(log_probabilities(logits, temperature=temperature).max(axis=1))
    return largest


def by_class(right: Booleans, labels: Labels, classes: Sequence[str]) -> tuple[ClassAccuracy, ...]:
    """Hits (n,) by label (n,), in the order of the classes."""
    images = np.bincount(labels, minlength=len(classes))
    hits = np.bincount(labels[right], minlength=len(classes))
    return tuple(
        ClassAccuracy(name=name, images=int(images[k]), right=int(hits[k]))
        for k, name in enumerate(classes)
        if images[k]
    )


def mistakes(
    answers: Labels, samples: Sequence[Sample], classes: Sequence[str]
) -> tuple[Mistake, ...]:
    """The pairs of classes that are mixed up most, with an image of each."""
    labels = np.array([sample.label for sample in samples])

    def example(chosen: Booleans) -> str:
        return str(samples[int(chosen.argmax())].path) if chosen.any() else ""

    return tuple(
        Mistake(
            truth=classes[pair.truth],
            answer=classes[pair.answer],
            images=pair.images,
            truth_example=example((labels == pair.truth) & (answers == pair.answer)),
            answer_example=example(labels == pair.answer),
        )
        for pair in confusions(answers, labels, most=MISTAKES)
    )


def by_domain(
    right: Booleans, samples: Sequence[Sample], domain: re.Pattern[str]
) -> tuple[Share, ...]:
    """Hits (n,) by what the pattern's group finds in each path, sorted by name."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(domain_of(sample.path, domain), []).append(index)
    return tuple(
        share(name, right[indices], [samples[index] for index in indices])
        for name, indices in sorted(groups.items())
    )


def share(name: str, right: Booleans, samples: Sequence[Sample]) -> Share:
    """Top-1 of hits (n,) of samples."""
    return Share(
        name=name,
        images=len(samples),
        classes=len({sample.label for sample in samples}),
        top1=share_interval(right),
    )


def base_to_new(base: Share, new: Share) -> BaseToNew:
    """Both halves and their harmonic mean, as CoCoOp's protocol has it (arXiv:2203.05557)."""
    return BaseToNew(
        base=base, new=new, harmonic_mean=harmonic_mean(base.top1.value, new.top1.value)
    )


def unknown(known: Doubles, strangers: Doubles) -> Unknown:
    """Confidences (n,) of images with a class and (m,) of images without."""
    thresholds = np.quantile(known, np.linspace(0, 1, ROC_POINTS))
    points = [(float((strangers >= t).mean()), float((known >= t).mean())) for t in thresholds]
    return Unknown(
        images=len(strangers),
        auroc=area_under_roc(known, strangers),
        fpr95=false_accepts_at(known, strangers),
        accepted=((1.0, 1.0), *points, (0.0, 0.0)),
    )


def domain_pattern(text: str) -> re.Pattern[str]:
    """A `--domain`: a regular expression with one group. Raises DataError for anything else."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DataError(f"--domain {text!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise DataError(
            f"--domain {text!r} has {pattern.groups} groups; expected one, which finds the domain "
            r"in a path: '/([^/]+)/[^/]+/[^/]+$' takes the folder above the class folder"
        )
    return pattern


def domain_of(path: Path, pattern: re.Pattern[str]) -> str:
    """What the pattern's group finds in a path. Raises DataError if that is nothing."""
    if not (found := pattern.search(path.as_posix())) or found[1] is None:
        raise DataError(
            f"--domain {pattern.pattern!r} finds no domain in {path}. Write a group that every "
            "path has"
        )
    return found[1]
