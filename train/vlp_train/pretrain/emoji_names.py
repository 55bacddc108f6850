"""Print zero-shot accuracy over every emoji name that six vendors' styles have, about 1,000.

    python -m vlp_train.pretrain.emoji_names --icons ICONS --corpus runs/vlp-tiny/corpus

The shipped classes are a curated quarter of these names; all of them, buttons and faces included,
say how far the model reaches. Names of which no word was ever a word of a caption are reported
apart: only the text tower can place them. Legend: N images, S pixels a side.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlp_deploy import embedded
from vlp_deploy.cli import guarded
from vlp_train.backbones import load_backbone
from vlp_train.emoji import MINIMUM_STYLES, STYLES, IconSet, normalised, read_classes, render
from vlp_train.pretrain.batches import normalise
from vlp_train.pretrain.captions import words_of
from vlp_train.pretrain.evaluate import Pictures, by_group, read_captions, table

# Words of names that say nothing about what is drawn.
_FILLING = frozenset(["a", "and", "at", "for", "in", "of", "off", "on", "the", "to", "with"])


def common_names(sets: Mapping[str, IconSet], *, minimum: int = MINIMUM_STYLES) -> dict[str, str]:
    """Return the names that at least `minimum` sets have, not as an alias: normalised -> words.

    The words are taken from a set that writes them apart.
    """
    written = [name for each in sets.values() for name in own_names(each)]
    counts = Counter(normalised(name) for name in written)
    words = {normalised(name): name.replace("-", " ") for name in sorted(written, key=len)}
    return {name: words[name] for name in sorted(words) if counts[name] >= minimum}


def own_names(icons: IconSet) -> list[str]:
    """Return the names of a set's icons as the set writes them, no aliases."""
    return [written for name, written in icons.names.items() if normalised(written) == name]


def shipped_names() -> set[str]:
    """Return the normalised names of the shipped classes and of the icons that show them."""
    return {normalised(name) for each in read_classes() for name in (each.name, each.icon)}


def pictures_of(names: Mapping[str, str], sets: Mapping[str, IconSet]) -> Pictures:
    """Render `names` (normalised -> class name) in every set that has them."""
    pixels, labels, styles = [], [], []
    for label, name in enumerate(names):
        for style, icons in sets.items():
            svg = icons.svg(name)
            if svg:
                image = Image.open(BytesIO(render(svg))).convert("RGB")
                pixels.append(np.asarray(image).transpose(2, 0, 1))
                labels.append(label)
                styles.append(style)
    return Pictures(
        classes=list(names.values()),
        pixels=normalise(torch.from_numpy(np.stack(pixels)).float() / 255),
        labels=torch.tensor(labels),
        styles=styles,
    )


def vendor_sets(icons: Path) -> dict[str, IconSet]:
    """Return the sets of the test styles from the folder `icons`/json."""
    return {each.prefix: IconSet(icons / "json" / f"{each.prefix}.json") for each in STYLES}


def by_words(classes: Sequence[str], captions: set[str]) -> dict[str, set[str]]:
    """Group classes by whether all, some or none of their words occur in captions."""
    seen = {word for caption in captions for word in caption.split()}
    groups: dict[str, set[str]] = {"all words seen": set(), "some": set(), "no word seen": set()}
    for name in classes:
        known = [word in seen for word in words_of(name) if word not in _FILLING]
        label = "all words seen" if all(known) else "some" if any(known) else "no word seen"
        groups[label].add(name)
    return groups


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m vlp_train.pretrain.emoji_names",
        description="Print the zero-shot table over all emoji names.",
    )
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm @iconify/json")
    parser.add_argument("--corpus", type=Path, required=True, help="packed pre-training corpus")
    parser.add_argument("--model", default=embedded.MODEL_NAME)
    parser.add_argument("--pretrained", default=None, help="weights other than the embedded ones")
    options = parser.parse_args(arguments)
    clip = load_backbone(options.model, options.pretrained)[0].eval()
    sets = vendor_sets(options.icons)
    pictures = pictures_of(common_names(sets), sets)
    groups = by_words(pictures.classes, read_captions(options.corpus))
    sys.stdout.write(table(clip, pictures) + "\n" + by_group(clip, pictures, groups) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
