"""From what `--calibration` names to pixels in memory, with labels where they are known.

Legend: n images, S image size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp_deploy import embedded
from vlp_deploy.bulk.items import Input
from vlp_deploy.classes.class_list import name_key
from vlp_deploy.data.dataset import Dataset, Sample, load_dataset
from vlp_deploy.errors import DataError
from vlp_deploy.formats.bundle import Manifest
from vlp_export.calibration import CalibrationImages, calibration_images

EMBEDDED_DATA = "split_zhou_styles.json"
UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class EvaluationImages:
    """Images to measure a precision on."""

    source: str
    pixels: NDArray[np.uint8]  # (n, 3, S, S)
    labels: NDArray[np.int64]  # (n,), classes of the bundle, or UNKNOWN


def evaluation_images(source: Path | None, manifest: Manifest, *, most: int) -> EvaluationImages:
    """At most `most` images of `source`, evenly spread and decoded as the bundle wants them.

    Without a source, the embedded model is measured on the embedded data. Raises DataError if
    there is no source, no image in it, or one that cannot be read.
    """
    source = source or _embedded(manifest)
    every = calibration_images(source, manifest.preprocessing)
    inputs, labels = _labelled(source, manifest) or (list(every.items), None)
    chosen = np.unique(np.linspace(0, len(inputs) - 1, most).astype(int))
    images: CalibrationImages = replace(
        every, items=[inputs[index] for index in chosen], count=len(chosen)
    )
    return EvaluationImages(
        source=source.name,
        pixels=np.concatenate(list(images.batches())),
        labels=np.full(len(chosen), UNKNOWN) if labels is None else labels[chosen],
    )


def _embedded(manifest: Manifest) -> Path:
    if manifest.backbone.name != embedded.MODEL_NAME:
        raise DataError(
            "there are no images to measure the precision on. Pass --calibration IMAGES, best "
            "those of training: a folder, an archive or a list. With class folders or labels, "
            "accuracy is measured, too"
        )
    return embedded.emoji_path() / EMBEDDED_DATA


def _labelled(source: Path, manifest: Manifest) -> tuple[list[Input], NDArray[np.int64]] | None:
    """Files and their classes in the bundle; None for pictures without labels."""
    try:
        dataset = load_dataset(source)
    except DataError:
        return None
    samples = list(_training(dataset))
    known = {name_key(name): index for index, name in enumerate(manifest.classes)}
    classes = [known.get(name_key(name), UNKNOWN) for name in dataset.class_names]
    labels = np.array([classes[sample.label] for sample in samples], np.int64)
    return [str(sample.path) for sample in samples], labels


def _training(dataset: Dataset) -> Iterable[Sample]:
    """The training split, or whatever there is."""
    return dataset.splits.get("train") or next(iter(dataset.splits.values()))
