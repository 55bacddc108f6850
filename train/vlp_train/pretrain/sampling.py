"""Turn a corpus into sampling weights: concrete, coloured and rare drawings come more often.

Legend: N drawings.
"""

from collections import Counter

import torch
from torch import Tensor

from vlp_train.pretrain.pack import Corpus
from vlp_train.pretrain.wordnet import NounLexicon

COLOUR_FACTOR = 3.0
CLIP_ART_FACTOR = 2.5
LIVING_FACTOR = 2.0
WORDS_FACTOR = {1: 1.0, 2: 0.6, 3: 0.3}
_LONG_FACTOR = 0.2
# Lexicographer files whose names interface icons neglect: animal, body, food, plant.
LIVING_FILES = frozenset({5, 8, 13, 20})


def drawing_weights(corpus: Corpus, lexicon: NounLexicon) -> Tensor:
    """Return sampling probabilities (N,): name frequency^(-1/2) times what the name is about."""
    counts = Counter(captions[0] for captions in corpus.captions)
    weights = torch.empty(len(corpus), dtype=torch.float64)
    for at, captions in enumerate(corpus.captions):
        words = captions[0].split()
        weight = counts[captions[0]] ** -0.5 * WORDS_FACTOR.get(len(words), _LONG_FACTOR)
        if any(
            LIVING_FILES & set(lexicon.files.get(form, ())) for form in (captions[0], words[-1])
        ):
            weight *= LIVING_FACTOR
        if at >= len(corpus.ink):
            weight *= COLOUR_FACTOR
        if corpus.sources[at] == "openclipart":
            weight *= CLIP_ART_FACTOR
        weights[at] = weight
    return weights / weights.sum()


def caption_shares(corpus: Corpus) -> list[list[float]]:
    """Return how often each caption of each drawing is used: 1 / frequency, summing to 1.

    Of "tulip, flower, plant" the first says most and, being rare, is said most.
    """
    counts = Counter(caption for captions in corpus.captions for caption in captions)
    shares = [[1 / counts[caption] for caption in captions] for captions in corpus.captions]
    return [[share / sum(own) for share in own] for own in shares]
