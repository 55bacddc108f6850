"""Training images are RGB in range, vary, and depend on their generator alone."""

import numpy as np
import torch
from torch import Generator

from vlp_train.pretrain.augment import augment, colour_ink
from vlp_train.pretrain.batches import Batches
from vlp_train.pretrain.pack import Corpus, enclosed_regions
from vlp_train.pretrain.sampling import caption_shares, drawing_weights
from vlp_train.pretrain.wordnet import NounLexicon


def ring() -> torch.Tensor:
    ink = np.zeros((1, 32, 32), dtype=np.uint8)
    ink[0, 6:26, 6:26] = 255
    ink[0, 10:22, 10:22] = 0
    return torch.from_numpy(ink)


def test_augment_gives_rgb_in_range_in_order_and_repeatably() -> None:
    ink = ring().repeat(5, 1, 1)
    regions = torch.from_numpy(np.stack([enclosed_regions(each) for each in ink.numpy()]))
    colour = torch.full((3, 32, 32, 4), 255, dtype=torch.uint8)
    first = augment(ink, regions, colour, Generator().manual_seed(1))
    again = augment(ink, regions, colour, Generator().manual_seed(1))
    other = augment(ink, regions, colour, Generator().manual_seed(2))
    assert first.shape == (8, 3, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[0] - first[1]).abs().max() > 0.05


def test_colour_ink_fills_holes_and_leaves_the_outside_clear() -> None:
    ink = ring().repeat(64, 1, 1)
    regions = torch.from_numpy(np.stack([enclosed_regions(each) for each in ink.numpy()]))
    rgba = colour_ink(ink.float() / 255, regions, Generator().manual_seed(0))
    assert (rgba[:, 3, 0, 0] == 0).all()
    assert (rgba[:, 3, 8, 8] == 1).all()
    filled = rgba[:, 3, 16, 16].mean()
    assert 0.5 < filled < 0.95  # three of four are filled
    assert (rgba[:, :3] <= rgba[:, 3:] + 1e-6).all()


def test_weights_prefer_colour_and_rare_names(corpus: Corpus, lexicon: NounLexicon) -> None:
    weights = drawing_weights(corpus, lexicon)
    assert float(weights.sum()) == 1.0
    assert weights[6] > weights[2]  # in colour
    assert weights[2] == weights[0]  # one of two bears is no rarer than one of two dogs
    assert weights[4] < weights[3]  # "dog house" is no noun of its own


def test_caption_shares_prefer_what_is_said_rarely(corpus: Corpus) -> None:
    shares = caption_shares(corpus)
    assert all(abs(sum(own) - 1) < 1e-12 for own in shares)
    assert shares[6][0] > shares[6][1]


def test_batches_depend_on_the_generator_alone(corpus: Corpus, lexicon: NounLexicon) -> None:
    captions = sorted({caption for own in corpus.captions for caption in own})
    batches = Batches(corpus, drawing_weights(corpus, lexicon), captions)
    images, targets = batches(12, Generator().manual_seed(3))
    again, targets_again = batches(12, Generator().manual_seed(3))
    assert images.shape == (12, 3, 16, 16)
    assert torch.equal(images, again)
    assert torch.equal(targets, targets_again)
    assert int(targets.max()) < len(captions)
