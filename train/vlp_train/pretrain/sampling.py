"""Turn a corpus into sampling weights: concrete, coloured and rare drawings come more often.

Legend: N drawings.
"""

from collections import Counter

import torch
from torch import Tensor

from vlp_train.pretrain.pack import Corpus
from vlp_train.pretrain.wordnet import NounLexicon

COLOUR_FACTOR = 2.0
CLIP_ART_FACTOR = 2.5
LIVING_FACTOR = 3.0
COMPOUND_FACTOR = 0.2  # "phone dial", "home door"; "hot dog" and "polar bear" are lemmas
MOST = 8.0  # times the average; a few drawings seen hundreds of times teach no more
_ROUNDS = 30  # cutting lowers the average, so it is repeated until it changes nothing
# Lexicographer files whose names interface icons neglect: animal, body, food, plant.
LIVING_FILES = frozenset({5, 8, 13, 20})


def drawing_weights(corpus: Corpus, lexicon: NounLexicon) -> Tensor:
    """Return sampling probabilities (N,): name frequency^(-1/2) times what it shows."""
    counts = _counts(corpus)
    weights = torch.empty(len(corpus), dtype=torch.float64)
    for at, captions in enumerate(corpus.captions):
        first, last_word = captions[0], captions[0].split()[-1]
        weight = counts[first] ** -0.5
        if first != last_word and not lexicon.is_concrete(first):
            weight *= COMPOUND_FACTOR
        if any(LIVING_FILES & set(lexicon.files.get(form, ())) for form in (first, last_word)):
            weight *= LIVING_FACTOR
        if at >= len(corpus.ink):
            weight *= COLOUR_FACTOR
        if corpus.sources[at] == "openclipart":
            weight *= CLIP_ART_FACTOR
        weights[at] = weight
    for _ in range(_ROUNDS):
        weights = (weights / weights.mean()).clamp(max=MOST)
    return weights / weights.sum()


def caption_shares(corpus: Corpus) -> list[list[float]]:
    """Return how often each caption of each drawing is used: 1 / frequency, summing to 1.

    Of "tulip, flower, plant" the first says most and, being rare, is said most.
    """
    counts = _counts(corpus)
    shares = [[1 / counts[caption] for caption in captions] for captions in corpus.captions]
    return [[share / sum(own) for share in own] for own in shares]


def _counts(corpus: Corpus) -> Counter[str]:
    """Count the drawings that have each caption, first or not."""
    return Counter(caption for captions in corpus.captions for caption in captions)
