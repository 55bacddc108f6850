"""The images of `--images`, or eight pictures to compare an export by: coloured, smooth, seeded.

The draws are integers of a raw PCG64 stream, so that every machine makes the same bytes.

Legend: S image size.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.data.dataset import Sample
from vlp_deploy.errors import DataError
from vlp_deploy.formats.checkpoint import REFERENCE_IMAGES
from vlp_deploy.images.loading import IMAGE_SUFFIXES

SEED = 2024
GRID = 6  # coloured points a side, blended between


def drawn_pictures(size: int, count: int = REFERENCE_IMAGES) -> NDArray[np.uint8]:
    """(count, 3, S, S)."""
    draws = np.random.PCG64(SEED).random_raw(count * 3 * GRID * GRID) >> np.uint64(56)
    points = draws.astype(np.int64).reshape(count, 3, GRID, GRID)
    return _enlarged(_enlarged(points, size).swapaxes(2, 3), size).swapaxes(2, 3).astype(np.uint8)


def _enlarged(points: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The third axis stretched to `size`, in whole numbers: the same on every machine."""
    steps, last = np.arange(size) * (points.shape[2] - 1), size - 1
    low = np.minimum(steps // last, points.shape[2] - 2)
    share = (steps - low * last)[:, None]
    blend: NDArray[np.int64] = points[:, :, low] * (last - share) + points[:, :, low + 1] * share
    return blend // last


def samples_of(folder: Path) -> tuple[Sample, ...]:
    """The images in a folder, at any depth, without classes. Raises DataError if it has none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"--images {folder} holds no images")
    return tuple(Sample(path, 0) for path in files)
