"""From a place with images to batches of pixels, as often as they are asked for. No labels needed.

B images of a batch, S image size.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.inputs import Inputs
from vlp_deploy.bulk.items import Input
from vlp_deploy.bulk.pipeline import batched
from vlp_deploy.bulk.reading import READ_THREADS, Picture, read_pictures
from vlp_deploy.data.list_files import read_list
from vlp_deploy.errors import DataError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.images.limits import DEFAULT_LIMITS

BATCH = 8
LISTS = (".csv", ".tsv", ".jsonl", ".json")


@dataclass(frozen=True, kw_only=True)
class CalibrationImages:
    """Images that are read anew in every pass, so that any number of them fits in memory."""

    items: Iterable[Input]
    preprocessing: Preprocessing
    count: int

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """One pass, uint8 (B, 3, S, S) at a time. Raises DataError for an image it cannot read."""
        pictures = read_pictures(
            self.items,
            self.preprocessing,
            exact_decode=True,
            limits=DEFAULT_LIMITS,
            threads=READ_THREADS,
            ahead=2 * BATCH,
        )
        for batch in batched(pictures, BATCH):
            yield np.stack([_pixels(picture) for picture in batch])


def calibration_images(source: Path, preprocessing: Preprocessing) -> CalibrationImages:
    """What `--calibration` names: a folder, to any depth, an archive, or a list of images.

    Raises DataError if there is nothing or no image.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist. Expected a folder or a list of images")
    inputs = Inputs(_listed(source) if source.suffix.lower() in LISTS else [source])
    count = inputs.count()
    if not count:
        raise DataError(f"{source} holds no image. Expected a folder or a list of images")
    return CalibrationImages(items=inputs, preprocessing=preprocessing, count=count)


def _listed(file: Path) -> list[Path]:
    """The images of a list to train on; all, where it has no such split. Labels do not matter."""
    rows, _ = read_list(file)
    chosen = [row for row in rows if row.split == "train"] or rows
    return [file.parent / row.path for row in chosen]


def _pixels(picture: Picture | Failure) -> NDArray[np.uint8]:
    if isinstance(picture, Failure):
        raise DataError(f"{picture.path}: {picture.error}. Replace the file or take it out")
    return picture.pixels
