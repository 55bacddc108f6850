"""Find colours to paint drawings with: those of a drawing called the same, or any.

Most drawings come without colours that mean anything. A red apple drawn in ink teaches its shape
alone; painted like the clip art of an apple it teaches its colours, too.

Legend: B drawings of a batch, M drawings in colour, S pixels a side, P = 32 colours of a palette.
"""

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from vlp_train.pretrain.areas import PALETTE
from vlp_train.pretrain.corpus import HOUSE_COLOUR_SETS
from vlp_train.pretrain.pack import Corpus

Pixels = npt.NDArray[np.uint8]

_BORROWED = 0.5  # of the drawings that have a namesake in colours
_OPAQUE = 128


class Paints:
    """Palettes for drawings of a corpus: borrowed half the time from a namesake, if there is one.

    `telling` (M,) says which drawings in colour have colours of their subject, not of their set.
    """

    def __init__(self, corpus: Corpus) -> None:
        inks = len(corpus.ink)
        self.telling = torch.tensor(
            [source not in HOUSE_COLOUR_SETS for source in corpus.sources[inks:]]
        )
        self._swatches = torch.from_numpy(swatches(corpus.colour)).float() / 255  # (M, P, 3)
        called: dict[str, list[int]] = defaultdict(list)
        for at in self.telling.nonzero().flatten().tolist():
            called[corpus.captions[inks + at][0]].append(at)
        self._namesakes = [called.get(captions[0], []) for captions in corpus.captions]

    def __call__(self, drawn: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return palettes (B, P, 3) in [0, 1] for the drawings (B,), and which are borrowed (B,).

        Colours are in random order; those that cover more of the namesake come more often.
        """
        count = len(drawn)
        paints = torch.rand(count, PALETTE, 3, generator=generator)
        order = torch.randint(PALETTE, (count, PALETTE), generator=generator)
        choice = torch.rand(count, generator=generator).tolist()
        borrowed = torch.rand(count, generator=generator) < _BORROWED
        for at, drawing in enumerate(drawn.tolist()):
            namesakes = self._namesakes[drawing]
            if not namesakes:
                borrowed[at] = False
            elif borrowed[at]:
                namesake = namesakes[int(choice[at] * len(namesakes))]
                paints[at] = self._swatches[namesake, order[at]]
        return paints, borrowed


def swatches(colour: Pixels) -> Pixels:
    """Return the colours (M, P, 3) of random opaque pixels of RGBA drawings (M, S, S, 4)."""
    generator = np.random.default_rng(0)
    result = np.empty((len(colour), PALETTE, 3), dtype=np.uint8)
    for at, rgba in enumerate(colour):
        opaque = rgba[rgba[..., 3] >= _OPAQUE]
        shown = opaque if len(opaque) else rgba.reshape(-1, 4)
        result[at] = generator.choice(shown, PALETTE)[:, :3]
    return result
