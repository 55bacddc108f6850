"""What one image costs from its file to its answer, stage by stage.

The stages are those of `vlp classify`, one after another on one thread (the engine uses its own),
where a bulk run lays them beside each other: read the file (which the system's cache will hold),
decode it (JPEG at a fraction of its size, as `vlp classify` does), preprocess (resize and crop),
engine (pixels to logits), head (logits to probabilities and the best labels).
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vlp_deploy.classifier import Classifier
from vlp_deploy.errors import DataError, ImageError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.images.loading import load_image
from vlp_deploy.images.preprocess import DRAFT_FACTOR, preprocess
from vlp_deploy.measuring.records import STAGES, Stages
from vlp_deploy.measuring.timing import Doubles, spread

WARM_UP, LEAST_ROUNDS = 3, 10
JPEG_QUALITY = 90


def measure_stages(
    classifier: Classifier, paths: Sequence[Path], *, source: str, seconds: float
) -> Stages:
    """Take images in turn for about `seconds`. Raises DataError that names an unreadable one."""
    for number in range(WARM_UP):
        times_of(classifier, paths[number % len(paths)])
    rows: list[Doubles] = []
    deadline = time.perf_counter() + seconds
    while len(rows) < LEAST_ROUNDS or time.perf_counter() < deadline:
        rows.append(times_of(classifier, paths[len(rows) % len(paths)]))
    columns = np.array(rows).T  # (stages, n)
    return Stages(
        source=source,
        images=min(len(paths), len(rows)),
        spreads={name: spread(ms) for name, ms in zip(STAGES, columns, strict=True)},
    )


def times_of(classifier: Classifier, path: Path) -> Doubles:
    """Milliseconds (stages,) of one image."""
    preprocessing = classifier.bundle.manifest.preprocessing
    marks = [time.perf_counter()]
    try:
        content = path.read_bytes()
        marks.append(time.perf_counter())
        image = load_image(
            content,
            background=preprocessing.background,
            exif_transpose=preprocessing.exif_transpose,
            draft_size=DRAFT_FACTOR * preprocessing.image_size,
        )
        marks.append(time.perf_counter())
    except (OSError, ImageError) as error:
        raise DataError(f"image {path}: {error}. Mend or remove it") from error
    pixels = preprocess(image, preprocessing)[None]  # (1, 3, S, S)
    marks.append(time.perf_counter())
    logits = classifier.logits(pixels)
    marks.append(time.perf_counter())
    classifier.answer(logits[0])
    marks.append(time.perf_counter())
    return 1000 * np.diff(marks)


def write_golden_images(bundle: Bundle, folder: Path) -> list[Path]:
    """The bundle's golden images as JPEG files: small ones, already cropped."""
    paths = []
    for number, pixels in enumerate(bundle.golden().pixels):
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels.transpose(1, 2, 0)).save(paths[-1], quality=JPEG_QUALITY)
    return paths
