"""Every odd picture is read as it looks; every broken file is refused for its own reason."""

import errno
import io
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vlp_deploy.errors import ImageError
from vlp_deploy.images import loading as images
from vlp_deploy.images.limits import Deadline, Limits
from vlp_deploy.images.loading import check_header, load_image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_every_odd_picture_is_read_from_bytes_and_from_disk(odd_images, tmp_path: Path) -> None:
    for name, content in odd_images.items():
        path = tmp_path / name
        path.write_bytes(content)

        image = load_image(content)

        assert image.mode == "RGB", name
        np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(image), name)


def test_every_broken_file_is_refused_with_its_reason(broken_images, tmp_path: Path) -> None:
    for name, (content, reason) in broken_images.items():
        path = tmp_path / name
        path.write_bytes(content)

        with pytest.raises(ImageError, match=reason) as refusal:
            load_image(path)

        assert str(tmp_path) not in str(refusal.value), name


def test_paths_that_are_no_files_are_refused_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")

    for name, reason in {
        "absent": "no such file",
        "dangling": "a link to a file that does not exist",
        "loop": "cannot be opened: .*symbolic links",
        "pipe": "a pipe, a socket or a device",
        ".": "a folder, not an image",
        "null\0": "cannot be opened: .*null",
        "x" * 300: "cannot be opened: .*too long",
    }.items():
        with pytest.raises(ImageError, match=reason):
            load_image(tmp_path / name)


def test_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(Image.new("RGB", (2, 2)), "PNG"))

    def refuse(*arguments: object) -> None:  # root, as in containers, may read everything
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)

    with pytest.raises(ImageError, match="cannot be opened: Permission denied"):
        load_image(path)


def test_sixteen_bits_are_scaled_and_not_clipped(odd_images) -> None:
    ramp = np.linspace(0, 65_535, 600)

    for name in ("16 bit grey.png", "16 bit rgb.png"):
        image = np.asarray(load_image(odd_images[name])).astype(float)
        values = image[:, :, 0].ravel() if "grey" in name else image.ravel()
        # rounding for one channel; Pillow keeps the high byte of the others
        expected = ramp if "grey" in name else np.linspace(0, 65_535, 1800)
        np.testing.assert_allclose(values, expected / 257, atol=1.0)


def test_adobe_inverted_cmyk_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 30))

    for format in ("JPEG", "TIFF"):  # Pillow writes JPEG inverted, as Adobe does, and TIFF not
        image = np.asarray(load_image(encoded(red.convert("CMYK"), format)))
        np.testing.assert_allclose(image, np.asarray(red), atol=6)  # JPEG's loss


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    source = image.convert(mode)

    pixels = np.asarray(load_image(source))

    assert pixels.tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_half_transparent_pixels_mix_with_the_background() -> None:
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))

    assert load_image(image).getpixel((0, 0)) == (127, 127, 127)
    assert load_image(image, background=(255, 0, 0)).getpixel((0, 0)) == (127, 0, 0)


def test_transparency_chunks_are_laid_on_white() -> None:
    checked = Image.new("RGB", (2, 1), (10, 20, 30))
    checked.putpixel((1, 0), (40, 50, 60))
    sixteen = Image.fromarray(np.array([[300, 40_000]], np.uint16))
    palette = checked.quantize(2)
    first = palette.getpixel((0, 0))

    for content in (
        encoded(checked, "PNG", transparency=(10, 20, 30)),
        encoded(sixteen, "PNG", transparency=300),
        encoded(palette, "PNG", transparency=first),
        encoded(palette, "GIF", transparency=first),
    ):
        pixels = np.asarray(load_image(content))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[0, 1].tolist() != [255, 255, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([np.nan, 0.0, 1.0], [0, 0, 255]),
        ([np.inf, 0.0, 1.0], [255, 0, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
        ([7000.0, 7000.0, 7000.0], [0, 0, 0]),
    ],
)
def test_floating_point_pictures_are_brought_to_bytes(values, expected) -> None:
    content = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")

    assert np.asarray(load_image(content))[0, :, 0].tolist() == expected


def test_animations_give_their_first_frame(odd_images) -> None:
    for name in ("animated.gif", "animated.webp", "animated.png"):
        red, green, blue = load_image(odd_images[name]).getpixel((15, 10))
        assert red > 240, name
        assert max(green, blue) < 15, name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(orientation: int, format: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    content = encoded(Image.fromarray(values), format, exif=exif, **options)

    upright = load_image(content)

    with Image.open(io.BytesIO(content)) as lying:
        expected = ImageOps.exif_transpose(lying).convert("RGB")
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(expected))
    assert np.array_equal(np.asarray(load_image(upright)), np.asarray(upright))  # not turned twice


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"x"])
def test_damaged_exif_does_not_lose_the_picture(exif: bytes) -> None:
    content = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=exif)

    assert load_image(content).size == (8, 8)


def test_pillow_images_are_not_changed() -> None:
    image = Image.new("RGBA", (5, 4), (1, 2, 3, 4))
    image.info["note"] = "mine"

    load_image(image)

    assert (image.mode, image.size, image.info) == ("RGBA", (5, 4), {"note": "mine"})


def test_lazily_opened_pillow_images_keep_their_size() -> None:
    content = encoded(Image.new("RGB", (800, 600)), "JPEG")

    with Image.open(io.BytesIO(content)) as image:
        assert load_image(image, draft_size=64).size == (800, 600)
        assert image.size == (800, 600)
    assert load_image(content, draft_size=64).size == (100, 75)


def test_images_decoded_at_once_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (encoded(Image.new("RGB", (side, side)), "PNG") for side in (30, 10))
    inside, most = [], {"large": 0, "all": 0}
    to_rgb = images._to_rgb

    def slow(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
        inside.append(image.width)
        most["large"] = max(most["large"], inside.count(30))
        most["all"] = max(most["all"], len(inside))
        time.sleep(0.02)
        inside.remove(image.width)
        return to_rgb(image, background)

    monkeypatch.setattr(images, "_to_rgb", slow)
    limits = Limits(max_bytes=8 * (30 * 30 + 3 * 10 * 10))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: load_image(content, limits=limits), [large, small] * 8))

    assert most["large"] == 1
    assert 1 < most["all"] <= 12  # twelve small ones, or a large one and three small ones


def test_image_that_would_take_too_much_memory_is_refused() -> None:
    rgb = encoded(Image.new("RGB", (100, 100)), "PNG")
    rgba = encoded(Image.new("RGBA", (100, 100)), "PNG")
    progressive = encoded(Image.new("RGB", (100, 100)), "JPEG", progressive=True)

    assert load_image(rgb, limits=Limits(max_bytes=80_000)).size == (100, 100)
    for content, size in ((rgb, 79_999), (rgba, 159_999), (progressive, 139_999)):
        with pytest.raises(ImageError, match="it would take 0 MB"):
            load_image(content, limits=Limits(max_bytes=size))


def test_no_image_is_read_on_after_its_deadline() -> None:
    deadline = Deadline(0.01)
    time.sleep(0.02)

    with pytest.raises(ImageError, match=r"takes longer than 0\.01 s"):
        load_image(encoded(Image.new("RGB", (10, 10)), "PNG"), deadline=deadline)


def test_header_check_refuses_what_loading_would(tmp_path: Path, broken_images) -> None:
    (good := tmp_path / "good.png").write_bytes(encoded(Image.new("L", (5, 5)), "PNG"))
    os.mkfifo(tmp_path / "pipe")

    check_header(good)
    with pytest.raises(ImageError, match="the limit is 24"):
        check_header(good, limits=Limits(max_pixels=24))
    with pytest.raises(ImageError, match="a pipe"):
        check_header(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("brand", "name", "message"),
    [
        (b"heic", "HEIF", "HEIC, which needs pillow-heif.*; convert it to JPEG"),
        (b"mif1", "HEIF", "HEIC, which needs pillow-heif.*; convert it to JPEG"),
        (b"avif", "AVIF", r"AVIF, which needs Pillow 11\.3 or later; convert it to JPEG"),
    ],
)
def test_format_that_pillow_was_built_without_is_named(
    brand: bytes, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images._load_plugins()
    monkeypatch.delitem(Image.OPEN, name, raising=False)

    with pytest.raises(ImageError, match=message):
        load_image(b"\0\0\0\x18ftyp" + brand + bytes(100))


@pytest.mark.parametrize("orientation", [1, 6])
def test_photos_of_phones_are_read_upright_where_their_package_is_installed(
    orientation: int,
) -> None:
    pytest.importorskip("pillow_heif", reason="the heic extra is not installed")
    images._load_plugins()
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    picture.paste((30, 30, 200), (32, 0, 64, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture, "HEIF", exif=exif.tobytes())  # and turned, as phones do

    image = load_image(content)

    assert image.size == ((64, 48) if orientation == 1 else (48, 64))
    blue = image.getpixel((60, 24) if orientation == 1 else (24, 60))
    np.testing.assert_allclose(blue, (30, 30, 200), atol=12)  # lossy
    with pytest.raises(ImageError, match="too large"):
        load_image(content, limits=Limits(max_pixels=64 * 48 - 1))
    with pytest.raises(ImageError):
        load_image(content[: len(content) * 2 // 3])


def test_bitmaps_without_a_file_header_are_read() -> None:
    image = Image.new("RGB", (7, 5), (1, 2, 3))

    assert load_image(encoded(image, "DIB")).getpixel((3, 2)) == (1, 2, 3)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_arrays_are_height_width_channels(shape: tuple[int, ...]) -> None:
    assert load_image(np.zeros(shape, np.uint8)).size == (5, 4)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3)),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_their_shape(array) -> None:
    with pytest.raises(ImageError, match="expected uint8 of shape"):
        load_image(array)


def test_pixel_cap_is_checked_before_decoding(broken_images) -> None:
    content = encoded(Image.new("RGB", (100, 100)), "PNG")

    assert load_image(content, limits=Limits(max_pixels=10_000)).size == (100, 100)
    with pytest.raises(ImageError, match=r"100 × 100 pixels; the limit is 9,999"):
        load_image(content, limits=Limits(max_pixels=9_999))
    with pytest.raises(ImageError, match="too large"):  # Pillow's own limit stays above all
        load_image(broken_images["bomb.png"][0], limits=Limits(max_pixels=10**12))


def test_pillows_warnings_stay_inside_and_filters_are_restored() -> None:
    large = encoded(Image.new("1", (10_000, 9_000)), "PNG")  # Pillow warns from 89 megapixels on
    before = list(warnings.filters)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        load_image(large)

    assert shown == []
    assert warnings.filters == before


def test_many_threads_read_alike(odd_images) -> None:
    before = list(warnings.filters)
    expected = {name: np.asarray(load_image(content)) for name, content in odd_images.items()}
    wrong: list[str] = []

    def read_all() -> None:
        for name, content in odd_images.items():
            if not np.array_equal(np.asarray(load_image(content)), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=read_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert warnings.filters == before


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_a_refusal(data: st.DataObject, odd_images) -> None:
    content = bytearray(data.draw(st.sampled_from(list(odd_images.values()))))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))

    for attempt in (bytes(content), bytes(content[:cut])):
        try:
            image = load_image(attempt, limits=Limits(max_pixels=10**6))
        except ImageError:
            continue
        assert image.mode == "RGB"
