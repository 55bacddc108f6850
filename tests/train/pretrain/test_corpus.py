"""Which sets and drawings are taken, and how they are packed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from vlp_train.pretrain.areas import FIRST_PART, areas_of, enclosed_regions
from vlp_train.pretrain.corpus import (
    Drawing,
    allowed_sets,
    clip_art,
    icons_of_set,
    is_excluded_drawing,
)
from vlp_train.pretrain.pack import ink_of, load_corpus, pack
from vlp_train.pretrain.render import render
from vlp_train.pretrain.wordnet import NounLexicon

RING = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">{}</svg>'


def svg(body: str) -> str:
    return RING.format(body)


def test_authors_are_named_where_the_package_names_their_collection(tmp_path: Path) -> None:
    info = {
        "name": "Game Icons",
        "author": {"name": "GameIcons", "url": "https://example.org"},
        "license": {"spdx": "CC-BY-3.0", "url": "https://example.org/license.txt"},
    }
    (tmp_path / "collections.json").write_text(json.dumps({"game-icons": info}))
    [icon_set] = allowed_sets(tmp_path)
    assert icon_set.author.startswith("Lorc, Delapouite")
    assert icon_set.licence_url == "https://example.org/license.txt"  # names them all


def test_sets_without_licence_held_out_or_about_emoji_are_left_out(icons: Path) -> None:
    assert [each.prefix for each in allowed_sets(icons)] == ["plain", "tinted"]


@pytest.mark.parametrize(
    ("source", "name", "excluded"),
    [
        ("glyphs-poly", "grin-tears", True),
        ("glyphs-poly", "star", True),
        ("glyphs-poly", "starfish", False),
        ("glyphs-poly", "saddle", False),
        ("ph", "star", False),
        ("openclipart", "tools/weapons/longsword_01.svg", True),
    ],
)
def test_drawings_like_emoji_are_left_out(source: str, name: str, excluded: bool) -> None:
    assert is_excluded_drawing(source, name) == excluded


def test_icons_of_set_caps_variants_and_drops_interface_names(
    icons: Path, lexicon: NounLexicon
) -> None:
    plain = allowed_sets(icons)[0]
    drawings = list(icons_of_set(icons, plain, lexicon))
    styles = ("outline", "fill", "bold", "thin", "light", "duotone")  # no size, no seventh
    assert [drawing.name for drawing in drawings] == [
        *(f"dog-{style}" for style in styles),
        "cherry",
    ]
    assert drawings[-1].captions == ("cherry", "cherries fruit")


def test_clip_art_is_captioned_by_nouns_and_flags_are_skipped(
    tmp_path: Path, lexicon: NounLexicon
) -> None:
    root = tmp_path / "usr/share/openclipart/svg"
    (root / "animals").mkdir(parents=True)
    (root / "signs_and_symbols/flags").mkdir(parents=True)
    described = (
        "<dc:title>Spot by Ann</dc:title><dc:subject><rdf:li>animal</rdf:li>"
        "<rdf:li>hash(0x1)</rdf:li></dc:subject>"
    )
    (root / "animals/dog_ann_01.svg").write_text(svg(described))
    (root / "animals/smiley_emoji.svg").write_text(svg("<dc:title>dog emoji</dc:title>"))
    (root / "signs_and_symbols/flags/dog.svg").write_text(svg(described))
    found = list(clip_art(tmp_path, lexicon))
    assert [(drawing.name, drawing.captions) for drawing in found] == [
        ("animals/dog_ann_01.svg", ("dog", "animal", "animals"))
    ]


def test_render_crops_to_content_and_centres() -> None:
    pixels = render(svg('<path d="M0 0h6v3H0z"/>'))
    assert pixels is not None
    assert pixels.shape == (64, 64, 4)
    rows, columns = np.nonzero(pixels[..., 3] > 128)
    assert (columns.min(), columns.max()) == (2, 61)
    assert rows.mean() == pytest.approx(31.5, abs=1)


@pytest.mark.parametrize("text", ["<svg", svg(""), "not an SVG at all"])
def test_render_gives_none_for_what_shows_nothing(text: str) -> None:
    assert render(text) is None


def test_ink_of_tells_colours_from_ink() -> None:
    black = render(svg('<circle cx="12" cy="12" r="9"/>'))
    red = render(svg('<circle cx="12" cy="12" r="9" fill="#d22"/>'))
    assert black is not None
    assert red is not None
    ink = ink_of(black)
    assert ink is not None
    assert ink[32, 32] == 255
    assert ink_of(red) is None


def test_enclosed_regions_numbers_holes_and_not_the_outside() -> None:
    ink = np.zeros((16, 16), dtype=np.uint8)
    ink[2:14, 2:14] = 255
    ink[4:8, 4:8] = 0
    ink[9:12, 9:12] = 0
    regions = enclosed_regions(ink)
    assert regions[0, 0] == 0
    assert regions[3, 3] == 0
    assert {int(regions[5, 5]), int(regions[10, 10])} == {1, 2}
    assert (regions[4:8, 4:8] == regions[5, 5]).all()


def test_enclosed_regions_closes_gaps_of_two_pixels_but_not_of_four() -> None:
    ink = np.zeros((24, 24), dtype=np.uint8)
    ink[2:22, 2:22] = 255
    ink[5:19, 5:19] = 0
    ink[11:13, 19:22] = 0
    assert enclosed_regions(ink)[12, 12] == 1
    ink[10:14, 19:22] = 0
    assert not enclosed_regions(ink).any()


def test_areas_tell_parts_of_the_ink_apart_and_who_owns_an_outline() -> None:
    ink = np.zeros((40, 40), dtype=np.uint8)
    ink[2:14, 2:14] = 255
    ink[4:12, 4:12] = 0
    ink[26:38, 2:38] = 255
    regions, parts, owners = areas_of(ink)
    assert parts[2, 2] != parts[30, 30]
    assert parts.min() >= FIRST_PART
    assert regions[8, 8] == owners[2, 2] == owners[3, 3]  # an outline belongs to what it encloses
    assert owners[30, 30] == parts[30, 30]  # solid ink belongs to itself


def test_areas_of_blank_and_full_ink_have_nothing_enclosed() -> None:
    for ink in (np.zeros((16, 16), dtype=np.uint8), np.full((16, 16), 255, dtype=np.uint8)):
        assert not areas_of(ink)[0].any()


def test_packed_corpus_reads_back(tmp_path: Path, icons: Path) -> None:
    dot, square = svg('<circle cx="9" cy="9" r="9"/>'), svg('<path fill="red" d="M0 0h9v9H0z"/>')
    rows = [("dog", dot), ("house", "<svg"), ("cherry", square)]
    drawings = [
        Drawing(source="plain", name=name, captions=(name,), colour=False, svg=text)
        for name, text in rows
    ]
    pack(drawings, allowed_sets(icons), tmp_path / "corpus")
    corpus = load_corpus(tmp_path / "corpus")
    assert (corpus.ink.shape, corpus.colour.shape) == ((1, 64, 64), (1, 64, 64, 4))
    assert (corpus.areas == areas_of(corpus.ink[0])).all()
    assert corpus.captions == [["dog"], ["cherry"]]
    with (tmp_path / "corpus/licences.csv").open() as file:
        listed = {row["source"]: row for row in csv.DictReader(file)}
    assert listed["plain"]["drawings"] == "2"
    # What CC-BY asks to be named.
    assert listed["tinted"] == {
        "source": "tinted",
        "title": "Tinted",
        "author": "Somebody, Else",
        "address": "https://example.org",
        "licence": "CC-BY-4.0",
        "licence url": "https://example.org/by/4.0/",
        "drawings": "0",
    }
