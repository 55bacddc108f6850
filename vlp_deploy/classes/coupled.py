"""DCP's bundles whose answers depend on the batch: how many images they take, and how to test them.

Such a bundle reproduces the official evaluation, which averages prompts over the images of a batch
(arXiv:2305.17903 and its released code). B images.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.errors import BundleError
from vlp_deploy.formats.structures import Coupled, Structure

Floats = NDArray[np.float32]
RunImage = Callable[[NDArray[np.uint8]], tuple[Floats, Floats]]


def fixed_batch(structure: Structure) -> int | None:
    """The one number of images that a bundle takes at a time; None for any number."""
    return structure.batch_size if isinstance(structure, Coupled) else None


def filled(pixels: NDArray[np.uint8], batch: int | None) -> NDArray[np.uint8]:
    """Images (n, 3, S, S) and, up to a `batch`, the same again: the last ones may be too few."""
    return pixels if batch is None else np.resize(pixels, (batch, *pixels.shape[1:]))


def check_batch(structure: Structure, images: int) -> None:
    """Raise BundleError unless this many images can be answered together."""
    batch = fixed_batch(structure)
    if batch is not None and images != batch:
        raise BundleError(
            f"this bundle was exported with --context batch: its answers depend on the other "
            f"images of a batch, and it takes exactly {batch} at a time; got {images}. It is for "
            "reproducing published numbers. To classify, export with --context frozen or per_sample"
        )


def one_by_one(run: RunImage, structure: Structure) -> RunImage:
    """`run` so that no image sees another: where a batch is fixed, each fills one by itself."""
    batch = fixed_batch(structure)
    if batch is None:
        return run

    def alone(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        answers = [run(np.repeat(image[None], batch, axis=0)) for image in pixels]
        embeddings, logits = zip(*answers, strict=True)
        return np.stack([rows[0] for rows in embeddings]), np.stack([rows[0] for rows in logits])

    return alone
