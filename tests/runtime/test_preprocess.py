"""Pixels must be open_clip's, for every size and shape."""

import io

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vlp_deploy.errors import ImageError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.images.limits import Limits
from vlp_deploy.images.loading import load_image
from vlp_deploy.images.preprocess import MAX_RESIZED_PIXELS, preprocess


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def open_clip_pixels(image: Image.Image, size: int, **options: str) -> NDArray[np.uint8]:
    transform = pytest.importorskip("open_clip.transform", reason="compares with open_clip")
    steps = transform.image_transform(size, is_train=False, **options).transforms
    for step in steps[:-2]:  # up to ToTensor and Normalize
        image = step(image)
    return np.asarray(image).transpose(2, 0, 1)


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.sampled_from([16, 31, 32, 64, 97]),
    seed=st.integers(0, 100),
)
@example(width=1, height=1, size=32, seed=0)
@example(width=1, height=300, size=32, seed=0)
@example(width=32, height=33, size=32, seed=0)
@example(width=33, height=32, size=31, seed=0)
def test_pixels_equal_open_clips(width: int, height: int, size: int, seed: int) -> None:
    image = noise(width, height, seed=seed)

    pixels = preprocess(image, Preprocessing(image_size=size))

    np.testing.assert_array_equal(pixels, open_clip_pixels(image, size))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 427), (224, 1000), (1213, 701)])
def test_pixels_equal_open_clips_at_224(size: tuple[int, int]) -> None:
    image = noise(*size)

    pixels = preprocess(image, Preprocessing(image_size=224))

    np.testing.assert_array_equal(pixels, open_clip_pixels(image, 224))


@pytest.mark.parametrize("size", [(90, 60), (33, 64), (20, 20), (1, 300)])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_pixels_equal_open_clips_in_its_other_ways(size: tuple[int, int], resize_mode: str) -> None:
    options = {"resize_mode": resize_mode, "interpolation": "bilinear"}
    preprocessing = msgspec.convert({"image_size": 48, **options}, Preprocessing)

    pixels = preprocess(noise(*size), preprocessing)

    np.testing.assert_array_equal(pixels, open_clip_pixels(noise(*size), 48, **options))


def test_pixels_equal_open_clips_on_an_odd_picture() -> None:
    palette = noise(90, 51).convert("RGBA")
    palette.putalpha(Image.linear_gradient("L").resize(palette.size))
    upright = load_image(palette)

    pixels = preprocess(palette, Preprocessing(image_size=32))

    np.testing.assert_array_equal(pixels, open_clip_pixels(upright, 32))


def test_pixels_are_contiguous_uint8_planes() -> None:
    pixels = preprocess(noise(50, 40), Preprocessing(image_size=32))

    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 32, 32))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("flip", [False, True])
def test_long_strip_is_cut_before_it_grows(flip: bool) -> None:
    width = MAX_RESIZED_PIXELS // 32**2 + 1001  # resized whole it would have 17 million pixels
    strip = np.zeros((1, width, 3), np.uint8)
    strip[:, width // 2 - 50 :] = 200
    strip[:, width // 2 + 51 :] = 0
    strip = strip.transpose(1, 0, 2) if flip else strip

    pixels = preprocess(strip, Preprocessing(image_size=32))

    np.testing.assert_array_equal(pixels, 200)


def test_inexact_decoding_shrinks_jpeg_and_changes_little() -> None:
    smooth = noise(40, 30).resize((1600, 1200), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    smooth.save(file, "JPEG", quality=92)
    preprocessing = Preprocessing(image_size=64)

    exact = preprocess(file.getvalue(), preprocessing).astype(int)
    fast = preprocess(file.getvalue(), preprocessing, exact=False).astype(int)

    difference = np.abs(exact - fast)
    assert difference.any()  # it did take the other route
    assert difference.mean() < 1  # measured 0.1; a wrong crop or scale gives tens
    assert load_image(file.getvalue(), draft_size=128).size == (200, 150)


def test_exif_orientation_can_be_switched_off() -> None:
    image = noise(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)

    upright = preprocess(file.getvalue(), Preprocessing(image_size=16))
    lying = preprocess(file.getvalue(), Preprocessing(image_size=16, exif_transpose=False))

    expected = preprocess(image.transpose(Image.Transpose.ROTATE_270), Preprocessing(image_size=16))
    np.testing.assert_array_equal(upright, expected)
    np.testing.assert_array_equal(lying, preprocess(image, Preprocessing(image_size=16)))


def test_pixel_cap_reaches_the_loader() -> None:
    with pytest.raises(ImageError, match="too large"):
        preprocess(noise(20, 20), Preprocessing(image_size=16), limits=Limits(max_pixels=399))
