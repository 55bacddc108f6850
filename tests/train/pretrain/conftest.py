"""A small lexicon, small icon packages and a small packed corpus."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlp_train.pretrain.areas import areas_of
from vlp_train.pretrain.pack import Corpus
from vlp_train.pretrain.wordnet import NounLexicon

ANIMAL, ARTEFACT, COGNITION, FOOD, PLANT = 5, 6, 9, 13, 20
CIRCLE = '<circle cx="12" cy="12" r="9" fill="none" stroke="currentColor" stroke-width="2"/>'
SQUARE = '<path fill="#d22" d="M4 4h16v16H4z"/>'


@pytest.fixture
def lexicon() -> NounLexicon:
    """A dozen nouns with the lexicographer files of their senses."""
    return NounLexicon(
        files={
            "dog": (ANIMAL,),
            "polar bear": (ANIMAL,),
            "bear": (ANIMAL,),
            "cherry": (FOOD, PLANT),
            "house": (ARTEFACT,),
            "animal": (ANIMAL,),
            "idea": (COGNITION,),
            "heart": (COGNITION, ANIMAL),
        }
    )


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """An icon package with a set to take and sets to leave."""
    folder = tmp_path / "icons"
    (folder / "json").mkdir(parents=True)
    mit, restricted = {"spdx": "MIT"}, {"spdx": "CC-BY-NC-4.0"}
    attributed = {"spdx": "CC-BY-4.0", "url": "https://example.org/by/4.0/"}
    collections = {
        "plain": {"name": "Plain", "license": mit, "category": "UI 24px", "palette": False},
        "tinted": {"name": "Tinted", "license": attributed, "palette": True},
        "streamline-ultimate": {"name": "Held out", "license": attributed},
        "paid": {"name": "Paid", "license": restricted, "category": "UI 24px"},
        "noto": {"name": "Noto", "license": mit},
        "smileys": {"name": "Smileys", "license": mit, "category": "Emoji"},
        "my-emoji-2": {"name": "Faces", "license": mit},
        "faces": {"name": "An Emoji Font", "license": mit},
        "brands": {"name": "Brands", "license": mit, "category": "Logos"},
        "line-md": {"name": "Animated", "license": mit, "category": "UI 24px"},
        "unlicensed": {"name": "No licence given"},
    }
    for info in collections.values():
        info["author"] = {"name": "Somebody, Else", "url": "https://example.org"}
    (folder / "collections.json").write_text(json.dumps(collections))
    for prefix, body in (("plain", CIRCLE), ("tinted", SQUARE)):
        dogs = ("outline", "24-outline", "fill", "bold", "thin", "light", "duotone", "sharp")
        names = (*(f"dog-{style}" for style in dogs), "arrow-left", "cherry")
        content = {
            "icons": {name: {"body": body} for name in names},
            "aliases": {"cherries-fruit": {"parent": "cherry"}},
            "width": 24,
            "height": 24,
        }
        (folder / "json" / f"{prefix}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def corpus() -> Corpus:
    """Six ink drawings and two in colour, 16 pixels a side."""
    generator = np.random.default_rng(0)
    ink = (generator.random((6, 16, 16)) > 0.5).astype(np.uint8) * 255
    return Corpus(
        ink=ink,
        areas=np.stack([areas_of(each) for each in ink]),
        colour=generator.integers(0, 256, (2, 16, 16, 4), dtype=np.uint8),
        sources=["plain"] * 6 + ["openclipart"] * 2,
        names=[f"drawing-{number}" for number in range(8)],
        captions=[
            ["dog"],
            ["dog"],
            ["bear"],
            ["house"],
            ["dog house"],
            ["house"],
            ["cherry", "food"],
            ["bear", "animal", "food"],
        ],
    )
