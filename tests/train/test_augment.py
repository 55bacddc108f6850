"""Random crops: inside the image, of the promised area and shape, and torchvision's pixels."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from vlp_train.augment import random_box, random_view


def noise_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 120), (33, 90)])
def test_random_box_keeps_area_and_aspect_ratio(width: int, height: int) -> None:
    random = np.random.default_rng(0)

    for _ in range(500):
        left, top, right, bottom = random_box(width, height, random)
        w, h = right - left, bottom - top
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        # sides are rounded to whole pixels, which moves area and ratio a little
        assert 0.08 * width * height * 0.85 <= w * h <= width * height
        assert 3 / 4 * 0.85 <= w / h <= 4 / 3 * 1.15


@pytest.mark.parametrize(("width", "height"), [(1000, 3), (3, 1000), (1, 1)])
def test_random_box_of_extreme_images_is_inside(width: int, height: int) -> None:
    random = np.random.default_rng(0)

    for _ in range(50):
        left, top, right, bottom = random_box(width, height, random)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_random_view_has_torchvisions_pixels() -> None:
    image = noise_image(90, 70)
    left, top, right, bottom = random_box(90, 70, np.random.default_rng(5))

    view = random_view(image, 16, np.random.default_rng(5), flip=False)

    expected = resized_crop(
        image, top, left, bottom - top, right - left, [16, 16], InterpolationMode.BICUBIC
    )
    assert np.array_equal(view, np.asarray(expected).transpose(2, 0, 1))


def test_random_view_is_mirrored_half_of_the_time() -> None:
    image = noise_image(40, 40)

    mirrored = 0
    for seed in range(200):
        plain = random_view(image, 8, np.random.default_rng(seed), flip=False)
        view = random_view(image, 8, np.random.default_rng(seed), flip=True)
        assert np.array_equal(view, plain) or np.array_equal(view, plain[:, :, ::-1])
        mirrored += not np.array_equal(view, plain)

    assert 70 < mirrored < 130  # 100 ± 4 standard deviations
