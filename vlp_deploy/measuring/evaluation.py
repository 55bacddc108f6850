"""Labelled images go through the bundle and its rivals; their logits become what is said of them.

Images are decoded in full, as in training. n labelled images, B batch, K classes, S image size.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.class_list import name_key
from vlp_deploy.classes.coupled import filled
from vlp_deploy.classifier import Classifier
from vlp_deploy.data.dataset import Dataset, Sample, Subset, check_readable
from vlp_deploy.errors import DataError, VlpError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.images.loading import load_image
from vlp_deploy.images.preprocess import preprocess
from vlp_deploy.measuring.accuracy import (
    BaseToNew,
    Findings,
    Share,
    accuracy,
    agreement,
    base_to_new,
    confidence,
    domain_of,
    findings,
    share,
    unknown,
)
from vlp_deploy.measuring.contender import Contender, Floats, Pixels, Progress
from vlp_deploy.measuring.metrics import ranks
from vlp_deploy.measuring.records import ContenderResult

ACCURACY_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What labelled images are asked. `samples` have labels of the bundle's classes in use.

    `source` is where they are from, `base` are names of classes that were tuned on; the others are
    new. `transfer` are data sets that are classified into class names of their own.
    """

    samples: Sequence[Sample]
    source: str = ""
    domain: re.Pattern[str] | None = None
    base: Sequence[str] = ()
    strangers: Sequence[Sample] = ()
    transfer: Sequence[Dataset] = ()

    def images(self, contenders: int) -> int:
        """How often an image is looked at, by all contenders together."""
        for_the_bundle = len(self.strangers) + (len(self.samples) if self.base else 0)
        others = sum(len(dataset.split("test")) for dataset in self.transfer)
        return contenders * len(self.samples) + for_the_bundle + others


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Runs contenders over images, every time over exactly `batch` of them."""

    preprocessing: Preprocessing
    temperature: float
    progress: Progress
    batch: int

    @classmethod
    def of(cls, bundle: Bundle, progress: Progress, *, batch: int) -> "Evaluator":
        """As `bundle` has its images and probabilities."""
        return cls(
            preprocessing=bundle.manifest.preprocessing,
            temperature=bundle.manifest.temperature,
            progress=progress,
            batch=batch,
        )

    def logits(self, name: str, contender: Contender, samples: Sequence[Sample]) -> Floats:
        """Logits (n, K) of samples; DataError names an unreadable image."""
        return all_logits(
            contender,
            samples,
            self.preprocessing,
            progress=lambda _, images: self.progress(f"accuracy: {name}", images),
            batch=self.batch,
        )

    def share(self, name: str, contender: Contender, samples: Sequence[Sample]) -> Share:
        """Top-1 of a contender over samples."""
        logits = self.logits(name, contender, samples)
        return share(name, ranks(logits, labels_of(samples)) <= 1, samples)


def evaluate(
    results: Sequence[ContenderResult],
    contenders: Mapping[str, Contender],
    classifier: Classifier,
    questions: Questions,
    evaluator: Evaluator,
) -> tuple[tuple[ContenderResult, ...], Findings]:
    """Add accuracy, and agreement with the bundle, to results; say what is found about the bundle.

    The first of `contenders` is `classifier`, the bundle's; each has a result of its name.
    """
    samples, labels = questions.samples, labels_of(questions.samples)
    logits = {name: evaluator.logits(name, each, samples) for name, each in contenders.items()}
    first, ours = results[0], logits[results[0].name]
    completed = tuple(
        msgspec.structs.replace(
            result,
            accuracy=accuracy(
                logits[result.name],
                labels,
                temperature=_temperature(contenders[result.name], evaluator.temperature),
            ),
            agreement=agreement(ours, logits[result.name], labels) if result is not first else None,
        )
        for result in results
    )
    found = findings(
        ours,
        samples,
        classifier.classes,
        temperature=evaluator.temperature,
        domain=questions.domain,
    )
    return completed, _further(found, classifier, ours, questions, evaluator)


def _temperature(contender: Contender, of_the_bundle: float) -> float:
    """Another bundle's own; a rival, which runs the same bundle, is given that of the bundle."""
    if isinstance(contender, Classifier):
        return contender.bundle.manifest.temperature
    return of_the_bundle


def _further(
    found: Findings,
    classifier: Classifier,
    logits: Floats,
    questions: Questions,
    evaluator: Evaluator,
) -> Findings:
    """What only the bundle is asked, with other classes or of other images."""
    rejection = None
    if questions.strangers:
        temperature = evaluator.temperature
        rejection = unknown(
            confidence(logits, temperature),
            confidence(evaluator.logits("unknown", classifier, questions.strangers), temperature),
        )
    return msgspec.structs.replace(
        found,
        base_to_new=_base_to_new(classifier, questions, evaluator) if questions.base else None,
        transfer=tuple(
            evaluator.share(
                dataset.source.name,
                classifier.with_classes(dataset.class_names),
                dataset.split("test"),
            )
            for dataset in questions.transfer
        ),
        unknown=rejection,
    )


def check_answerable(questions: Questions, classifier: Classifier) -> None:
    """Raise at once what would else be found when everything else is measured.

    DataError for images that cannot be read or parted as asked; BundleError if the bundle cannot
    serve the classes of a part or of other data (what is embedded for that is kept in the cache).
    """
    others = [dataset.split("test") for dataset in questions.transfer]
    check_readable([*questions.samples, *questions.strangers, *chain.from_iterable(others)])
    if questions.domain:
        for sample in questions.samples:
            domain_of(sample.path, questions.domain)
    if questions.base:
        for labels in _halves(classifier, questions).values():
            classifier.with_classes([classifier.classes[label] for label in labels])
    for dataset in questions.transfer:
        classifier.with_classes(dataset.class_names)


def _halves(classifier: Classifier, questions: Questions) -> dict[Subset, list[int]]:
    """The labels of base and of new classes. Raises DataError if one of them are too few."""
    base = {name_key(name) for name in questions.base}
    halves: dict[Subset, list[int]] = {"base": [], "new": []}
    for label in sorted({sample.label for sample in questions.samples}):
        halves["base" if name_key(classifier.classes[label]) in base else "new"].append(label)
    for half, labels in halves.items():
        if len(labels) < 2:
            raise DataError(
                f"the labelled images have {len(labels)} {half} classes; base and new ones are "
                "classified among themselves, so at least 2 of each are needed. Check "
                "--base-classes"
            )
    return halves


def _base_to_new(classifier: Classifier, questions: Questions, evaluator: Evaluator) -> BaseToNew:
    shares = []
    for half, labels in _halves(classifier, questions).items():
        index = {label: number for number, label in enumerate(labels)}
        samples = [
            Sample(path=each.path, label=index[each.label])
            for each in questions.samples
            if each.label in index
        ]
        names = [classifier.classes[label] for label in labels]
        shares.append(evaluator.share(half, classifier.with_classes(names), samples))
    return base_to_new(*shares)


def labels_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """The labels (n,) of samples."""
    return np.array([sample.label for sample in samples], np.int64)


def all_logits(
    contender: Contender,
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    *,
    progress: Progress,
    batch: int | None = None,
) -> Floats:
    """Logits (n, K) of every sample, exactly decoded; DataError names an unreadable image.

    With `batch`, every run has exactly as many images: what the last one lacks is filled with its
    own images again.
    """
    rows, size = [], batch or ACCURACY_BATCH
    for start in range(0, len(samples), size):
        chunk = samples[start : start + size]
        pixels = np.stack([_pixels(s.path, preprocessing) for s in chunk])
        rows.append(contender.logits(filled(pixels, batch))[: len(chunk)])
        progress("accuracy", len(chunk))
    return np.concatenate(rows)


def _pixels(path: Path, preprocessing: Preprocessing) -> Pixels:
    try:
        return preprocess(load_image(path), preprocessing)
    except VlpError as error:
        raise DataError(f"test image {path}: {error}. Mend or remove it") from error


def labels_in_bundle(dataset: Dataset, classes: Sequence[str], *, advice: str) -> list[Sample]:
    """The test samples with labels counted in the bundle's `classes`.

    Names are the same in whatever capitals and spacing. Raises DataError, with the `advice`, if
    DATA has classes that the bundle lacks.
    """
    index = {name_key(name): number for number, name in enumerate(classes)}
    if strangers := [name for name in dataset.class_names if name_key(name) not in index]:
        raise DataError(
            f"{dataset.source} has {len(strangers)} classes that the bundle does not know, first "
            f"{strangers[0]!r}; the bundle has {len(classes)}. {advice}"
        )
    samples = [
        Sample(path=sample.path, label=index[name_key(dataset.class_names[sample.label])])
        for sample in dataset.split("test")
    ]
    if not samples:
        raise DataError(f"{dataset.source} has no image in its test split: nothing can be counted")
    return samples
