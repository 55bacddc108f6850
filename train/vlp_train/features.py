"""From an image set to what training steps work on: pixels, or features that stay the same.

A step takes a batch of `batch_size` · `accumulate` images in pieces of `batch_size`; of each piece
every process takes its share. The weights of a batch's pieces, over all processes, add up to one:
the weighted sum of their mean losses is the mean loss of the batch.

Legend: B images of a piece, D joint width, S image size, n training images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_train.devices import Precision, autocast
from vlp_train.images import Batch, ImageSet, cut
from vlp_train.methods.base import Inputs, Method, Training
from vlp_train.parallel import ALONE, Processes

FEATURE_BATCH = 64  # images a batch where no gradient is needed

Indices = NDArray[np.int64]  # (B,), of the samples


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one forward and backward pass works on."""

    inputs: Inputs
    indices: Indices
    weight: float  # its share of the batch's images


class Features:
    """Batch after batch of a method's inputs. What can be computed once is.

    Features of a frozen image tower are cached where images look the same in every epoch, or where
    `views` of each are to be taken in turn, one an epoch.
    """

    def __init__(
        self,
        method: Method,
        images: ImageSet,
        *,
        training: Training,
        precision: Precision,
        views: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self.device = method.prompted.device
        self._method, self._images = method, images
        self._training, self._precision = training, precision
        self._views, self._processes = views, processes
        self._caches = not method.learns_image and (views > 0 or not images.augment)
        self._cached: dict[int, Tensor] = {}  # (n, D) by view
        self._class_features = None if method.learns_text else self._frozen_classes()

    def steps(self, epoch: int) -> Iterator[Iterator[Piece]]:
        """The batches of an epoch, each as this process's pieces of it."""
        batches = self._batches(epoch)
        plan = [self._shares(batch) for batch in batches]
        inputs = self._inputs([share for shares in plan for share in shares], epoch)
        for batch, shares in zip(batches, plan, strict=True):
            yield (
                Piece(inputs=each, indices=share, weight=len(share) / len(batch))
                for share, each in zip(shares, islice(inputs, len(shares)), strict=True)
            )

    def step_count(self, epoch: int) -> int:
        """How many steps an epoch has."""
        return len(self._batches(epoch))

    def _batches(self, epoch: int) -> list[Indices]:
        size = self._training.batch_size * self._training.accumulate
        return self._images.shuffled(epoch, size)

    def _shares(self, batch: Indices) -> list[Indices]:
        pieces = cut(batch, self._training.batch_size)
        shares = [self._processes.share(piece) for piece in pieces]
        return [share for share in shares if len(share)]

    def _inputs(self, plan: list[Indices], epoch: int) -> Iterator[Inputs]:
        for images, labels in self._images_and_labels(plan, epoch):
            yield Inputs(
                images=images,
                class_features=self._class_features,
                labels=labels.to(self.device),
                epoch=epoch,
            )

    def _images_and_labels(
        self, plan: list[Indices], epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Image features (B, D), or pixels (B, 3, S, S), and labels (B,)."""
        if self._caches:
            features = self._all(epoch % self._views if self._views else 0)
            for indices in plan:
                yield features[torch.from_numpy(indices)], self._images.labels(indices)
            return
        for batch in self._images.batches(plan, epoch=epoch):
            learns_image = self._method.learns_image
            yield (batch.pixels if learns_image else self._of(batch)), batch.labels

    @torch.no_grad()
    def _of(self, batch: Batch) -> Tensor:
        """(B, D)."""
        with autocast(self.device, self._precision):
            return self._method.image_features(batch.pixels)

    def _all(self, view: int) -> Tensor:
        """Features (n, D) of one view of every image; each process computes some of them."""
        if view not in self._cached:
            width = self._method.prompted.clip.config.embed_dim
            features = torch.zeros(len(self._images), width, device=self.device)
            plan = cut(np.arange(len(self._images)), FEATURE_BATCH)
            plan = plan[self._processes.rank :: self._processes.size]
            for batch in self._images.batches(plan, epoch=view):
                features[torch.from_numpy(batch.indices)] = self._of(batch)
            self._processes.add_up([features])
            self._cached[view] = features
        return self._cached[view]

    @torch.no_grad()
    def _frozen_classes(self) -> Tensor:
        return self._method.class_features()
