"""Training images are RGB in range, vary, and depend on their generator alone."""

import numpy as np
import pytest
import torch
from torch import Generator

from vlp_train.pretrain.areas import FIRST_PART, PALETTE, areas_of
from vlp_train.pretrain.augment import (
    Sheets,
    augment,
    colour_ink,
    light,
    paint_colours,
    palettes,
    repaint,
    thicken,
)
from vlp_train.pretrain.batches import Batches
from vlp_train.pretrain.pack import Corpus
from vlp_train.pretrain.paints import Paints
from vlp_train.pretrain.sampling import caption_shares, drawing_weights
from vlp_train.pretrain.wordnet import NounLexicon


def rings(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A square ring, ink (count, 32, 32) and areas (count, 3, 32, 32)."""
    ink = np.zeros((32, 32), dtype=np.uint8)
    ink[6:26, 6:26] = 255
    ink[10:22, 10:22] = 0
    areas = torch.from_numpy(areas_of(ink))
    return torch.from_numpy(ink).repeat(count, 1, 1), areas.repeat(count, 1, 1, 1)


def sheets(inks: int, colours: int, *, telling: bool = True) -> Sheets:
    """Rings, and colour drawings half red and half white with clear borders."""
    ink, areas = rings(inks)
    colour = torch.zeros(colours, 32, 32, 4, dtype=torch.uint8)
    colour[:, 4:28, 4:28] = 255
    colour[:, 4:28, 4:16, 1:3] = 0
    generator = Generator().manual_seed(7)
    return Sheets(
        ink=ink,
        areas=areas,
        colour=colour,
        paints=torch.rand(inks + colours, PALETTE, 3, generator=generator),
        borrowed=torch.zeros(inks + colours, dtype=torch.bool),
        telling=torch.full((colours,), telling),
    )


def coloured_rings(count: int) -> torch.Tensor:
    drawn, generator = sheets(count, 0), Generator().manual_seed(0)
    colours, vanish = palettes(drawn.paints, drawn.borrowed, generator)
    return colour_ink(drawn.ink.float() / 255, drawn.areas, colours, vanish)


def test_augment_gives_rgb_in_range_in_order_and_repeatably() -> None:
    drawn = sheets(5, 3)
    first = augment(drawn, Generator().manual_seed(1))
    again = augment(drawn, Generator().manual_seed(1))
    other = augment(drawn, Generator().manual_seed(2))
    assert first.shape == (8, 3, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[0] - first[1]).abs().max() > 0.05


def test_augment_takes_batches_of_one_kind_only() -> None:
    generator = Generator().manual_seed(0)
    assert len(augment(sheets(2, 0), generator)) == 2
    assert len(augment(sheets(0, 2), generator)) == 2


def test_colour_ink_fills_holes_and_leaves_the_outside_clear() -> None:
    rgba = coloured_rings(64)
    assert (rgba[:, 3, 0, 0] == 0).all()
    assert (rgba[:, 3, 8, 8] == 1).all()
    filled = rgba[:, 3, 16, 16].mean()
    assert 0.6 < filled < 0.95  # four of five are filled
    assert (rgba[:, :3] <= rgba[:, 3:] + 1e-6).all()


def test_colour_ink_drops_the_outlines_of_some_filled_drawings_only() -> None:
    rgba = coloured_rings(200)
    same = (rgba[:, :, 8, 8] == rgba[:, :, 16, 16]).all(dim=1)
    assert 0.15 < same.float().mean() < 0.5  # of four of five, two of five
    assert (rgba[same, 3, 16, 16] == 1).all()


def test_palettes_never_cover_the_outside_and_always_show_ink() -> None:
    drawn = sheets(50, 0)
    colours, vanish = palettes(drawn.paints, drawn.borrowed, Generator().manual_seed(0))
    assert (colours[:, 0, 3] == 0).all()
    assert (colours[:, FIRST_PART:, 3] == 1).all()
    assert (colours[vanish, 1, 3] == 1).all()


def test_palettes_keep_borrowed_colours_of_areas() -> None:
    paints = torch.full((20, PALETTE, 3), 0.25)
    borrowed = torch.arange(20) < 10
    colours, _ = palettes(paints, borrowed, Generator().manual_seed(0))
    assert (colours[:10, 1, :3] == 0.25).all()
    assert (colours[10:, 1, :3] == 0.5).all()  # lighter


def test_repaint_moves_every_part_towards_a_paint_of_its_own() -> None:
    rgb = torch.zeros(1, 64, 3)
    rgb[:, 32:] = 1.0
    paints = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])[None]
    generator = Generator().manual_seed(1)  # draws pixels of both parts
    painted = repaint(rgb, torch.ones(1, 64), paints, torch.ones(1), generator)
    for part in (painted[0, :, :32], painted[0, :, 32:]):
        assert (part == part[:, :1]).all()
    assert (painted[0, :, 0] - painted[0, :, -1]).abs().max() > 0.3
    kept = repaint(rgb, torch.ones(1, 64), paints, torch.zeros(1), generator)
    assert torch.equal(kept, rgb.mT)


def test_only_colours_that_mean_nothing_are_wholly_painted_over() -> None:
    def far(telling: bool) -> float:
        painted = paint_colours(sheets(0, 200, telling=telling), Generator().manual_seed(0))
        assert (painted[:, :, 0, 0] == 0).all()
        red = torch.tensor([1.0, 0.0, 0.0])
        return ((painted[:, :3, 10, 10] - red).abs().amax(dim=1) > 0.35).float().mean().item()

    assert far(telling=True) == 0.0
    assert 0.6 < far(telling=False) <= 0.8


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


def test_no_drawing_outweighs_eight_average_ones(lexicon: NounLexicon) -> None:
    pixels = np.zeros((40, 4, 4, 4), dtype=np.uint8)
    many = Corpus(
        ink=pixels[:39, 0],
        areas=pixels[:39, :3],
        colour=pixels[:1],
        sources=["plain"] * 39 + ["openclipart"],
        names=[""] * 40,
        captions=[["dog house"]] * 39 + [["bear"]],
    )
    weights = drawing_weights(many, lexicon)
    assert float(weights[39] / weights.mean()) == pytest.approx(8.0)


def test_paints_are_borrowed_from_namesakes_with_colours_of_their_own() -> None:
    colour = np.zeros((2, 8, 8, 4), dtype=np.uint8)
    colour[0, 2:6, 2:6] = (255, 0, 0, 255)
    colour[1, 2:6, 2:6] = (0, 0, 255, 255)
    corpus = Corpus(
        ink=np.zeros((3, 8, 8), dtype=np.uint8),
        areas=np.zeros((3, 3, 8, 8), dtype=np.uint8),
        colour=colour,
        sources=["plain"] * 3 + ["openclipart", "streamline-color"],
        names=[""] * 5,
        captions=[["apple"], ["plum"], ["pear"], ["apple"], ["plum"]],
    )
    paints = Paints(corpus)
    assert paints.telling.tolist() == [True, False]
    colours, borrowed = paints(torch.arange(3).repeat(50), Generator().manual_seed(0))
    assert not borrowed.unflatten(0, (50, 3))[:, 1:].any()
    assert 15 <= int(borrowed.sum()) <= 35
    assert (colours[borrowed] == torch.tensor([1.0, 0.0, 0.0])).all()
    assert colours[~borrowed].std() > 0.2


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
