"""Held-out and all-names pictures are what their modules say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vlp_train.emoji import STYLES, IconSet, normalised, read_classes
from vlp_train.pretrain.corpus import HELD_OUT_SETS
from vlp_train.pretrain.emoji_names import by_words, common_names, pictures_of, vendor_sets
from vlp_train.pretrain.held_out import figures, trained_icons
from vlp_train.pretrain.unseen import COLOUR_SETS, held_out_emoji, held_out_icons

BODY = '<path fill="#d22" d="M4 4h16v16H4z"/>'


def write_set(folder: Path, prefix: str, names: tuple[str, ...], licence: str) -> None:
    content = {
        "prefix": prefix,
        "info": {"license": {"spdx": licence}},
        "lastModified": 0,
        "icons": {name: {"body": BODY} for name in names},
        "aliases": {"kitty": {"parent": names[0]}},
        "width": 24,
        "height": 24,
    }
    (folder / "json" / f"{prefix}.json").write_text(json.dumps(content))


@pytest.fixture
def vendors(tmp_path: Path) -> Path:
    """Seven styles, OpenMoji and the held-out colour sets with a few names."""
    (tmp_path / "json").mkdir()
    for number, style in enumerate(STYLES):
        names = ("cat-face", "hot-dog", "ship") if number < 6 else ("catface", "hotdog")
        write_set(tmp_path, style.prefix, names, style.declared_licence)
    openmoji = ("water-polo", "ship", read_classes()[0].icon)
    write_set(tmp_path, "openmoji", openmoji, "CC-BY-SA-4.0")
    for prefix in COLOUR_SETS:
        write_set(tmp_path, prefix, ("hot-dog-2", "ship-1", "arrow"), "CC-BY-4.0")
    return tmp_path


def test_common_names_are_those_of_six_sets_written_with_blanks(vendors: Path) -> None:
    found = common_names(vendor_sets(vendors))
    # "kitty" is an alias; the seventh set lacks "ship", which six have.
    assert found == {"catface": "cat face", "hotdog": "hot dog", "ship": "ship"}
    assert "ship" not in common_names(vendor_sets(vendors), minimum=7)


def test_pictures_of_names_have_labels_and_styles(vendors: Path) -> None:
    sets = vendor_sets(vendors)
    pictures = pictures_of({"ship": "ship", "hotdog": "hot dog"}, sets)
    assert pictures.classes == ["ship", "hot dog"]
    assert pictures.pixels.shape == (13, 3, 64, 64)
    assert pictures.labels.tolist() == [0] * 6 + [1] * 7
    assert pictures.styles[:6] == [style.prefix for style in STYLES[:6]]


def test_words_that_no_caption_has_are_told_apart() -> None:
    groups = by_words(["hot dog", "polar fox", "zebra in a tutu"], {"dog", "hot air", "fox"})
    assert groups == {
        "all words seen": {"hot dog"},
        "some": {"polar fox"},
        "no word seen": {"zebra in a tutu"},
    }


def test_held_out_emoji_leave_out_the_shipped_classes(vendors: Path) -> None:
    shipped = normalised(read_classes()[0].icon)
    for style in STYLES:
        names = ("water-polo", read_classes()[0].icon)
        write_set(vendors, style.prefix, names, style.declared_licence)
    assert shipped in common_names(vendor_sets(vendors))
    pictures = held_out_emoji(vendors)
    assert pictures.classes == ["water polo"]
    assert set(pictures.styles) == {"openmoji"}


def test_held_out_icons_are_named_by_captions(vendors: Path) -> None:
    pictures = held_out_icons(vendors, {"ship", "hot dog", "bear"})
    assert pictures.classes == ["hot dog", "ship"]
    assert set(pictures.styles) == set(COLOUR_SETS)
    assert len(pictures.labels) == 2 * len(COLOUR_SETS)


def test_trained_icons_are_the_colour_drawings_of_the_corpus(tmp_path: Path) -> None:
    red = np.zeros((2, 64, 64, 4), dtype=np.uint8)
    red[:, 8:, 8:] = (255, 0, 0, 255)
    np.save(tmp_path / "colour.npy", red)
    rows = [("ink", "ship"), ("colour", "ship"), ("colour", "arrow")]
    listed = [{"source": source, "captions": [caption]} for source, caption in rows]
    (tmp_path / "corpus.json").write_text(json.dumps(listed))
    pictures = trained_icons(tmp_path, ["hot dog", "ship"])
    assert (pictures.styles, pictures.labels.tolist()) == (["colour"], [1])
    assert pictures.pixels[0, 0, 0, 0] == pictures.pixels[0, 0, 9, 9]  # white and red
    assert pictures.pixels[0, 1, 0, 0] > pictures.pixels[0, 1, 9, 9]


def test_held_out_styles_are_neither_trained_on_nor_tested() -> None:
    tested = {style.prefix for style in STYLES}
    assert not tested & {*COLOUR_SETS, "openmoji"}
    assert set(COLOUR_SETS) < HELD_OUT_SETS


def test_figures_count_ranks() -> None:
    texts = torch.eye(8)
    images = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3, 2]]).repeat(4, 1)
    top1, top5, reciprocal = figures(images, texts, torch.tensor([0, 1, 4, 7]))
    assert (top1, top5) == (25.0, 75.0)
    assert reciprocal == pytest.approx(100 * (1 + 1 / 2 + 1 / 5 + 1 / 8) / 4)


def test_icon_set_lists_names_and_aliases(vendors: Path) -> None:
    names = IconSet(vendors / "json" / "openmoji.json").names
    assert names["kitty"] == names["waterpolo"] == "water-polo"
