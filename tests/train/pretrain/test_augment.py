"""Training images are RGB in range, vary, and depend on their generator alone."""

import numpy as np
import torch
from torch import Generator

from vlp_train.pretrain.areas import FIRST_PART, areas_of
from vlp_train.pretrain.augment import augment, colour_ink, light, palettes, thicken
from vlp_train.pretrain.batches import Batches
from vlp_train.pretrain.pack import Corpus
from vlp_train.pretrain.sampling import caption_shares, drawing_weights
from vlp_train.pretrain.wordnet import NounLexicon


def rings(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A square ring, ink (count, 32, 32) and areas (count, 3, 32, 32)."""
    ink = np.zeros((32, 32), dtype=np.uint8)
    ink[6:26, 6:26] = 255
    ink[10:22, 10:22] = 0
    areas = torch.from_numpy(areas_of(ink))
    return torch.from_numpy(ink).repeat(count, 1, 1), areas.repeat(count, 1, 1, 1)


def test_augment_gives_rgb_in_range_in_order_and_repeatably() -> None:
    ink, areas = rings(5)
    colour = torch.full((3, 32, 32, 4), 255, dtype=torch.uint8)
    first = augment(ink, areas, colour, Generator().manual_seed(1))
    again = augment(ink, areas, colour, Generator().manual_seed(1))
    other = augment(ink, areas, colour, Generator().manual_seed(2))
    assert first.shape == (8, 3, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[0] - first[1]).abs().max() > 0.05


def test_augment_takes_batches_of_one_kind_only() -> None:
    ink, areas = rings(2)
    colour = torch.full((2, 32, 32, 4), 255, dtype=torch.uint8)
    generator = Generator().manual_seed(0)
    assert len(augment(ink, areas, colour[:0], generator)) == 2
    assert len(augment(ink[:0], areas[:0], colour, generator)) == 2


def test_colour_ink_fills_holes_and_leaves_the_outside_clear() -> None:
    ink, areas = rings(64)
    rgba = colour_ink(ink.float() / 255, areas, Generator().manual_seed(0))
    assert (rgba[:, 3, 0, 0] == 0).all()
    assert (rgba[:, 3, 8, 8] == 1).all()
    filled = rgba[:, 3, 16, 16].mean()
    assert 0.6 < filled < 0.95  # four of five are filled
    assert (rgba[:, :3] <= rgba[:, 3:] + 1e-6).all()


def test_colour_ink_drops_the_outlines_of_some_filled_drawings_only() -> None:
    ink, areas = rings(200)
    rgba = colour_ink(ink.float() / 255, areas, Generator().manual_seed(0))
    same = (rgba[:, :, 8, 8] == rgba[:, :, 16, 16]).all(dim=1)
    assert 0.15 < same.float().mean() < 0.5  # of four of five, two of five
    assert (rgba[same, 3, 16, 16] == 1).all()


def test_palettes_never_cover_the_outside_and_always_show_ink() -> None:
    colours, vanish = palettes(50, Generator().manual_seed(0))
    assert (colours[:, 0, 3] == 0).all()
    assert (colours[:, FIRST_PART:, 3] == 1).all()
    assert (colours[vanish, 1, 3] == 1).all()


def test_thicken_widens_narrows_or_keeps() -> None:
    ink, _ = rings(200)
    before = ink[0].float().mean() / 255
    areas = thicken(ink.float() / 255, Generator().manual_seed(0)).mean(dim=(1, 2))
    assert (areas > before).any()
    assert (areas < before).any()
    assert (areas == before).float().mean() > 0.5


def test_light_keeps_colours_below_alpha() -> None:
    rgba = torch.zeros(32, 4, 16, 16)
    rgba[:, :, 4:12, 4:12] = 1.0
    lit = light(rgba, Generator().manual_seed(0))
    assert (lit[:, :3] <= lit[:, 3:]).all()
    assert lit[:, :3].std(dim=0).max() > 0.05


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
