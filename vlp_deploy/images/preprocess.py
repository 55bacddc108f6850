"""From a picture to the pixels that the image tower reads, exactly as in training.

Equal pixel by pixel to open_clip's inference transform, before its normalisation: resize the
shorter side to S (with antialiasing, 8 bits) and crop the centre, or squash both sides to S.
S image size.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.images.limits import DEFAULT_LIMITS, Deadline, Limits
from vlp_deploy.images.loading import ImageSource, load_image

# JPEG decoded at twice the target: 1.5 levels off on average and 5 at most, on line drawings
DRAFT_FACTOR = 2
MAX_RESIZED_PIXELS = 1 << 24
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def preprocess(
    source: ImageSource,
    preprocessing: Preprocessing,
    *,
    exact: bool = True,
    limits: Limits = DEFAULT_LIMITS,
    deadline: Deadline | None = None,
) -> NDArray[np.uint8]:
    """Pixels (3, S, S) of anything that `load_image` reads. Raises ImageError.

    `exact=False` decodes JPEG files and bytes at a fraction of their size, at least twice the
    target: several times faster on camera pictures, and pixels change a little.
    """
    size = preprocessing.image_size
    image = load_image(
        source,
        limits=limits,
        background=preprocessing.background,
        exif_transpose=preprocessing.exif_transpose,
        draft_size=None if exact else DRAFT_FACTOR * size,
        deadline=deadline,
    )
    resampling = FILTERS[preprocessing.interpolation]
    if preprocessing.resize_mode == "squash":
        image = image.resize((size, size), resampling)
    else:
        image = _resize_and_crop(image, size, resampling)
    pixels = np.asarray(image)  # (S, S, 3)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resize_and_crop(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """Shorter side to `size`, then the centre; the roundings are torchvision's."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    resized_long = int(size * long / short)
    if size * resized_long > MAX_RESIZED_PIXELS:
        # A one-pixel-high strip would grow to gigapixels: resize only the square that is kept.
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
        return image.resize((size, size), resampling, box=box)
    new_width, new_height = (size, resized_long) if width <= height else (resized_long, size)
    if (new_width, new_height) != image.size:
        image = image.resize((new_width, new_height), resampling)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return image.crop((left, top, left + size, top + size))
