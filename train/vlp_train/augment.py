"""From a decoded image to one random training view of it: a crop, resized, perhaps mirrored.

The training transform of CoOp and its successors (RandomResizedCrop and a horizontal flip).
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

AREA_SHARE = (0.08, 1.0)  # of the image that a crop keeps
ASPECT_RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10

Box = tuple[int, int, int, int]  # left, top, right, bottom


def random_view(
    image: Image.Image, size: int, random: np.random.Generator, *, flip: bool
) -> NDArray[np.uint8]:
    """A random crop of an RGB image, resized with bicubic interpolation: uint8 (3, size, size)."""
    box = random_box(image.width, image.height, random)
    # crop first: resizing with a box would let the filter see pixels outside it
    view = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(view, dtype=np.uint8).transpose(2, 0, 1)  # (3, size, size)
    if flip and random.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels)


def random_box(width: int, height: int, random: np.random.Generator) -> Box:
    """A box of random area and aspect ratio inside the image; the middle if ten draws miss it."""
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*AREA_SHARE)
        ratio = math.exp(random.uniform(math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(random.integers(0, width - w + 1))
            top = int(random.integers(0, height - h + 1))
            return left, top, left + w, top + h
    return _middle(width, height)


def _middle(width: int, height: int) -> Box:
    """The largest centred box whose aspect ratio is allowed."""
    narrowest, widest = ASPECT_RATIO
    w = max(1, min(width, round(height * widest)))
    h = max(1, min(height, round(width / narrowest)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
