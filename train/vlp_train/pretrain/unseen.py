"""Render drawings that are neither trained on nor tested: what choices are made by.

They are

- icons in colour, of the styles that `corpus` holds out, with names that are captions of the
  corpus;
- emoji of a vendor that is not among the test styles, OpenMoji, only of names that are not among
  the shipped classes.
"""

from collections.abc import Collection
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlp_deploy.errors import DataError
from vlp_train.emoji import IconSet, render
from vlp_train.pretrain.batches import normalise
from vlp_train.pretrain.corpus import HELD_OUT_SETS
from vlp_train.pretrain.emoji_names import (
    common_names,
    own_names,
    pictures_of,
    shipped_names,
    vendor_sets,
)
from vlp_train.pretrain.evaluate import Pictures

COLOUR_SETS = tuple(sorted(prefix for prefix in HELD_OUT_SETS if prefix.endswith("-color")))


def held_out_emoji(icons: Path) -> Pictures:
    """Return OpenMoji's drawings of names outside the shipped classes."""
    names = common_names(vendor_sets(icons))
    kept = {name: words for name, words in names.items() if name not in shipped_names()}
    return pictures_of(kept, {"openmoji": IconSet(icons / "json" / "openmoji.json")})


def held_out_icons(icons: Path, captions: Collection[str]) -> Pictures:
    """Return colour icons whose name, numbers cut off, is one of `captions`.

    Raises:
        DataError: there are none.
    """
    wanted = {caption: label for label, caption in enumerate(sorted(captions))}
    pixels, labels, styles = [], [], []
    for prefix in COLOUR_SETS:
        icon_set = IconSet(icons / "json" / f"{prefix}.json")
        for name in own_names(icon_set):
            words = name.rstrip("-0123456789").replace("-", " ")
            svg = icon_set.svg(name)
            if words in wanted and svg:
                image = Image.open(BytesIO(render(svg))).convert("RGB")
                pixels.append(np.asarray(image).transpose(2, 0, 1))
                labels.append(wanted[words])
                styles.append(prefix)
    if not labels:
        raise DataError(
            f"no icon of {', '.join(COLOUR_SETS)} in {icons}/json has the name of a caption; "
            "choices are made by them. Give the icon package that the recipe names"
        )
    used = sorted(set(labels))
    return Pictures(
        classes=[sorted(captions)[label] for label in used],
        pixels=normalise(torch.from_numpy(np.stack(pixels)).float() / 255),
        labels=torch.tensor([used.index(label) for label in labels]),
        styles=styles,
    )
