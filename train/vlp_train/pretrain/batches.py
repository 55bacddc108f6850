"""Turn the corpus into training batches: weighted drawings, augmented, each with one caption.

Legend: B images, S pixels a side, K bank captions, D joint width, N drawings.
"""

from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Generator, Tensor

from vlp_deploy.formats.architecture import OPENAI_MEAN, OPENAI_STD
from vlp_train.pretrain.augment import Sheets, augment
from vlp_train.pretrain.pack import Corpus
from vlp_train.pretrain.paints import Paints
from vlp_train.pretrain.sampling import caption_shares


@dataclass(frozen=True, kw_only=True)
class Bank:
    """All captions with their embeddings and how often training meets them."""

    captions: list[str]
    embeddings: Tensor  # (K, D), unit vectors
    log_frequency: Tensor  # (K,)


def frequencies(corpus: Corpus, drawing_probability: Tensor, captions: list[str]) -> Tensor:
    """Return the probability (K,) that training draws each caption."""
    index = {caption: at for at, caption in enumerate(captions)}
    found = torch.zeros(len(captions), dtype=torch.float64)
    rows = zip(drawing_probability.tolist(), corpus.captions, caption_shares(corpus), strict=True)
    for probability, own, shares in rows:
        for caption, share in zip(own, shares, strict=True):
            found[index[caption]] += probability * share
    return found


class Batches:
    """Weighted drawings, augmented; a batch is a function of its generator alone."""

    def __init__(self, corpus: Corpus, probability: Tensor, captions: list[str]) -> None:
        index = {caption: at for at, caption in enumerate(captions)}
        self._corpus, self._paints = corpus, Paints(corpus)
        self._cumulative = probability.cumsum(0)
        self._shares = [list(accumulate(own)) for own in caption_shares(corpus)]
        self._targets = [[index[caption] for caption in own] for own in corpus.captions]

    def __call__(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return RGB images (B, 3, S, S) in [0, 1] and caption numbers (B,)."""
        points = torch.rand(count, generator=generator, dtype=torch.float64)
        drawn = torch.searchsorted(self._cumulative, points).clamp(max=len(self._corpus) - 1)
        drawn = drawn.sort().values  # ink drawings first
        images = augment(self._sheets(drawn, generator), generator)
        luck = torch.rand(len(drawn), generator=generator).tolist()
        chosen = [
            self._targets[at][min(bisect(self._shares[at], chance), len(self._targets[at]) - 1)]
            for at, chance in zip(drawn.tolist(), luck, strict=True)
        ]
        return images, torch.tensor(chosen)

    def _sheets(self, drawn: Tensor, generator: Generator) -> Sheets:
        """The pixels of drawings (B,), ink first, and paints for them."""
        inks = len(self._corpus.ink)
        plain, coloured = drawn[drawn < inks].numpy(), (drawn[drawn >= inks] - inks).numpy()
        paints, borrowed = self._paints(drawn, generator)
        return Sheets(
            ink=torch.from_numpy(self._corpus.ink[plain]),
            areas=torch.from_numpy(self._corpus.areas[plain]),
            colour=torch.from_numpy(self._corpus.colour[coloured]),
            paints=paints,
            borrowed=borrowed,
            telling=self._paints.telling[torch.from_numpy(coloured)],
        )


def normalise(images: Tensor) -> Tensor:
    """Apply CLIP's mean and standard deviation to RGB (B, 3, S, S) in [0, 1]."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (OPENAI_MEAN, OPENAI_STD))
    return (images - mean) / std
