"""From samples to uint8 batches: decoded once, augmented by a random stream that has no memory.

Every random number is drawn from (seed, epoch, sample), never from what was drawn before, so an
epoch is the same whether the run came to it in one go or was resumed just before it.

Legend: B images of a batch, S image size.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlp_deploy.data.dataset import Sample
from vlp_deploy.errors import DataError, ImageError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.images.loading import load_image
from vlp_deploy.images.preprocess import preprocess
from vlp_train.augment import random_view

Pixels = NDArray[np.uint8]

KEPT_BYTES = 1 << 30  # decoded images held in memory; beyond it they are decoded every epoch
DECODERS = 4
_ORDER, _VIEW = 0, 1  # what a random stream is for


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images as the tower reads them, before normalisation, and what they show."""

    indices: NDArray[np.int64]  # (B,), of the samples
    pixels: Tensor  # (B, 3, S, S), uint8
    labels: Tensor  # (B,), int64


def cut(indices: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Pieces of `size` in order, the last one perhaps smaller."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


class ImageSet:
    """Labelled image files, and how to look at them."""

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        *,
        seed: int = 0,
        augment: bool = False,
        flip: bool = True,
    ) -> None:
        self.samples = tuple(samples)
        self.preprocessing = preprocessing
        self.seed, self.augment, self.flip = seed, augment, flip
        self._kept: dict[Path, Image.Image] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.samples)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every sample once, as it will be seen when served."""
        return self.batches(cut(np.arange(len(self)), batch_size))

    def epoch(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """One pass in random order."""
        return self.batches(self.shuffled(epoch, batch_size), epoch=epoch)

    def shuffled(self, epoch: int, batch_size: int) -> list[NDArray[np.int64]]:
        """The sample indices of an epoch's batches, an incomplete last one dropped.

        Only a set smaller than one batch is taken as it is.
        """
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self))
        whole = len(self) // batch_size * batch_size
        return cut(order[:whole] if whole else order, batch_size)

    def labels(self, indices: NDArray[np.int64]) -> Tensor:
        """The classes of some samples."""
        return torch.tensor([self.samples[index].label for index in indices])

    def batches(
        self, plan: Sequence[NDArray[np.int64]], *, epoch: int | None = None
    ) -> Iterator[Batch]:
        """Batches of the given samples in order; threads prepare the next while the caller works.

        With an epoch they are the random views of it, if this set is augmented. Raises DataError
        naming an image that cannot be read.
        """
        with ThreadPoolExecutor(DECODERS) as pool:
            waiting: list[list[Future[Pixels]]] = []
            try:
                for ahead in range(len(plan) + 1):
                    if ahead < len(plan):
                        waiting.append(
                            [pool.submit(self._view, int(i), epoch) for i in plan[ahead]]
                        )
                    if ahead > 0:
                        views = np.stack([view.result() for view in waiting.pop(0)])
                        indices = plan[ahead - 1]
                        yield Batch(
                            indices=indices,
                            pixels=torch.from_numpy(views),
                            labels=self.labels(indices),
                        )
            finally:
                pool.shutdown(cancel_futures=True)

    def _view(self, index: int, epoch: int | None) -> Pixels:
        """uint8 (3, S, S) of one sample."""
        path = self.samples[index].path
        image = self._decoded(path)
        if epoch is None or not self.augment:
            return preprocess(image, self.preprocessing)
        random = np.random.default_rng([self.seed, _VIEW, epoch, index])
        return random_view(image, self.preprocessing.image_size, random, flip=self.flip)

    def _decoded(self, path: Path) -> Image.Image:
        """An upright RGB image, from memory if there was room to keep it."""
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        try:
            image = load_image(
                path,
                background=self.preprocessing.background,
                exif_transpose=self.preprocessing.exif_transpose,
            )
        except ImageError as error:
            raise DataError(f"{path}: {error}. Replace the file or take it out") from error
        size = 3 * image.width * image.height
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept_bytes += size
            self._kept[path] = image
        return image
