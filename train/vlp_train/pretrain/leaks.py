"""Check a packed corpus against the emoji: no excluded set, no drawing that copies an emoji.

    python -m vlp_train.pretrain.leaks --icons ICONS --corpus runs/vlp-tiny/corpus

The emoji are the embedded ones and, in every style, all names that six styles share (`emoji_names`)
except squares and discs.
Drawings are compared twice: by a difference hash of 64 bits (is the next of 9 x 8 grey cells
darker?) and, where hashes are near, by the root mean square difference of 16 x 16 coloured cells.
Ink drawings are compared as black on white. Exit code 1 if anything is found.

Legend: N drawings, M emoji, S pixels a side.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlp_deploy.cli import guarded
from vlp_train.emoji import render
from vlp_train.pretrain.corpus import LICENCES, is_excluded
from vlp_train.pretrain.emoji_names import common_names, vendor_sets
from vlp_train.pretrain.evaluate import EMOJI
from vlp_train.pretrain.pack import Corpus, load_corpus
from vlp_train.pretrain.progress import bar

Pixels = npt.NDArray[np.uint8]

NEAR_BITS = 8
NEAR_COLOURS = 0.10
_CELLS = 16
# Squares and discs are nobody's drawing: every filled phone, card or lens looks like one.
_SHAPES = re.compile(r".*(?:square|circle)(?:button)?")


@dataclass(frozen=True, kw_only=True)
class Match:
    """A drawing that looks like an emoji: differing bits of 64, colour difference in [0, 1]."""

    drawing: str
    emoji: str
    bits: int
    colours: float


def on_white(rgba: Pixels) -> Image.Image:
    """Put RGBA (S, S, 4) on white."""
    image = Image.fromarray(rgba)
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def cropped(image: Image.Image) -> Image.Image:
    """Cut white margins, so that two drawings of different scale can be compared."""
    ink = image.convert("L").point(lambda grey: 255 if grey < 248 else 0)
    return image.crop(ink.getbbox() or (0, 0, *image.size))


def signature(image: Image.Image) -> tuple[int, npt.NDArray[np.float32]]:
    """Return the difference hash (64 bits) and the coloured cells (16 * 16 * 3,) in [0, 1]."""
    tight = cropped(image)
    grey = np.asarray(tight.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, 1:] < grey[:, :-1]).flatten()
    cells = tight.resize((_CELLS, _CELLS), Image.Resampling.BOX)
    colours = (np.asarray(cells, dtype=np.float32) / np.float32(255)).flatten()
    return int.from_bytes(np.packbits(bits).tobytes()), colours


def drawings_of(corpus: Corpus) -> list[Image.Image]:
    """Return all drawings of a corpus as they look on white."""
    plain = [Image.fromarray(255 - ink).convert("RGB") for ink in corpus.ink]
    return plain + [on_white(rgba) for rgba in corpus.colour]


def find_copies(
    drawings: Sequence[Image.Image], names: Sequence[str], emoji: dict[str, Image.Image]
) -> list[Match]:
    """Return every pair of a drawing and an emoji that look alike."""
    theirs = {name: signature(image) for name, image in emoji.items()}
    labels = list(theirs)
    hashes = np.array([each[0] for each in theirs.values()], dtype=np.uint64)  # (M,)
    found = []
    for name, drawing in zip(names, bar(drawings, len(drawings), "drawings"), strict=True):
        own_hash, own_colours = signature(drawing)
        distance = np.bitwise_count(hashes ^ np.uint64(own_hash))
        for at in np.flatnonzero(distance <= NEAR_BITS):
            other = labels[at]
            colours = float(np.sqrt(np.mean((theirs[other][1] - own_colours) ** 2)))
            if colours <= NEAR_COLOURS:
                bits = int(distance[at])
                found.append(Match(drawing=name, emoji=other, bits=bits, colours=colours))
    return found


def all_emoji(icons: Path) -> dict[str, Image.Image]:
    """Return the embedded emoji and, under `icons`, the common names in all test styles."""
    emoji = {
        path.relative_to(EMOJI).as_posix(): Image.open(path).convert("RGB")
        for path in sorted(EMOJI.glob("*/*.png"))
    }
    sets = vendor_sets(icons)
    for name in filter(is_drawing, common_names(sets)):
        for style, icon_set in sets.items():
            svg = icon_set.svg(name)
            if svg:
                emoji[f"{style}:{name}"] = Image.open(BytesIO(render(svg))).convert("RGB")
    return emoji


def is_drawing(name: str) -> bool:
    """Tell whether an emoji (normalised name) shows more than a square or a disc."""
    return _SHAPES.fullmatch(name) is None


def excluded_sources(sources: set[str], icons: Path) -> list[str]:
    """Return the sources that the rules of `corpus` forbid, by name, category or licence."""
    collections = json.loads((icons / "collections.json").read_text(encoding="utf-8"))
    return sorted(
        source
        for source in sources - {"openclipart"}
        if is_excluded(source, collections[source])
        or collections[source].get("license", {}).get("spdx") not in LICENCES
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, print what was found and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vlp_train.pretrain.leaks", description="Look for emoji in the corpus."
    )
    parser.add_argument("--corpus", type=Path, required=True, help="packed pre-training corpus")
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm @iconify/json")
    options = parser.parse_args(arguments)
    corpus = load_corpus(options.corpus)
    forbidden = excluded_sources(set(corpus.sources), options.icons)
    labels = [f"{source}:{name}" for source, name in zip(corpus.sources, corpus.names, strict=True)]
    emoji = all_emoji(options.icons)
    copies = find_copies(drawings_of(corpus), labels, emoji)
    for match in copies:
        row = f"{match.drawing} looks like {match.emoji}: {match.bits} bits, {match.colours:.3f}"
        sys.stdout.write(row + "\n")
    sys.stdout.write(
        f"{len(corpus)} drawings of {len(set(corpus.sources))} sources against {len(emoji)} emoji: "
        f"{len(forbidden)} forbidden sources {forbidden}, {len(copies)} pairs look alike\n"
    )
    return 1 if forbidden or copies else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
