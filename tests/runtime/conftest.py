"""Tiny bundles and awkward pictures, made on the spot, for all tests of the runtime."""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from vlp_deploy.formats.bundle import Bundle, BundleContents, write_bundle
from vlp_deploy.formats.fake_bundle import write_fake_bundle

CLASSES = ("red", "green", "blue", "grey")


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "bundle"
    write_fake_bundle(path, CLASSES)
    return path


@pytest.fixture
def fake_bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of four classes for the fake engine, 32 pixels, 16 dimensions."""
    return Path(shutil.copytree(pristine_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def odd_images() -> dict[str, bytes]:
    """File name → content of pictures that are odd but must be read."""
    return {name: make() for name, make in ODD.items()}


@pytest.fixture(scope="session")
def broken_images() -> dict[str, tuple[bytes, str]]:
    """File name → content of files that must be refused, and what the refusal must say."""
    return BROKEN


@pytest.fixture
def torture_folder(tmp_path: Path, odd_images, broken_images) -> Path:
    """A folder of every odd and every broken kind, good ones between, at two depths."""
    folder = tmp_path / "torture"
    for part in (folder, folder / "deeper"):
        part.mkdir()
        for index in range(3):
            Image.fromarray(photo(40 + index, 50)).save(part / f"good {index}.jpg")
        for name, content in odd_images.items():
            (part / name).write_bytes(content)
        for name, (content, _) in broken_images.items():
            (part / name).write_bytes(content)
        (part / "dangling.jpg").symlink_to("nowhere.jpg")
        (part / "folder.jpg").mkdir()  # an empty folder with a misleading name
        os.mkfifo(part / "pipe.jpg")
        (part / "notes.txt").write_text("no image at all")
        (part / ".hidden.jpg").write_bytes(b"")
    return folder


def photo(width: int, height: int, *, seed: int = 0):
    """Smooth colours, (H, W, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG from its parts; `rows` are unfiltered."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def deep_png(channels: int, colour: int) -> bytes:
    """16 bits a channel, a ramp from 0 to 65535."""
    ramp = np.linspace(0, 65_535, 30 * 20 * channels).astype(">u2").reshape(20, -1)
    return png(30, 20, 16, colour, b"".join(b"\0" + row.tobytes() for row in ramp))


def palette_with_alpha() -> bytes:
    image = Image.fromarray(photo(30, 20)).quantize(16)
    return encoded(image, "PNG", transparency=bytes(range(0, 256, 16)))


def animation(format: str) -> bytes:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(photo(30, 20)), "JPEG", exif=exif)


def bomb() -> bytes:
    """A PNG that says 30,000 × 30,000 and would unfold to 2.7 GB."""
    return png(30_000, 30_000, 8, 2, b"\0" * 1_000_000)


RGB = Image.fromarray(photo(30, 20))
GREY = RGB.convert("L")
JPEG = encoded(RGB, "JPEG")
PNG = encoded(RGB, "PNG")
PHOTO = encoded(Image.fromarray(photo(300, 200)), "JPEG")

ODD: dict[str, Callable[[], bytes]] = {
    "16 bit grey.png": lambda: deep_png(1, 0),
    "16 bit rgb.png": lambda: deep_png(3, 2),
    "16 bit rgba.png": lambda: deep_png(4, 6),
    "16 bit grey alpha.png": lambda: deep_png(2, 4),
    "16 bit grey.tiff": lambda: encoded(
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "TIFF"
    ),
    "32 bit.tiff": lambda: encoded(
        Image.fromarray(np.arange(600, dtype=np.int32).reshape(20, 30) * 9999), "TIFF"
    ),
    "float.tiff": lambda: encoded(
        Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)), "TIFF"
    ),
    "cmyk.jpg": lambda: encoded(RGB.convert("CMYK"), "JPEG"),
    "cmyk.tiff": lambda: encoded(RGB.convert("CMYK"), "TIFF"),
    "palette.png": lambda: encoded(RGB.quantize(16), "PNG"),
    "palette alpha.png": palette_with_alpha,
    "rgba.png": lambda: encoded(Image.merge("RGBA", (*RGB.split(), GREY)), "PNG"),
    "grey alpha.png": lambda: encoded(Image.merge("LA", (GREY, GREY)), "PNG"),
    "transparent colour.png": lambda: encoded(RGB, "PNG", transparency=(0, 0, 0)),
    "one bit.png": lambda: encoded(GREY.convert("1"), "PNG"),
    "animated.gif": lambda: animation("GIF"),
    "animated.webp": lambda: animation("WEBP"),
    "animated.png": lambda: animation("PNG"),
    "rotated.jpg": rotated,
    "jpeg named.png": lambda: JPEG,
    "png named.jpg": lambda: PNG,
    "jpeg without ending": lambda: JPEG,
    "picture.txt": lambda: PNG,
    "one pixel.png": lambda: encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
    "one pixel.gif": lambda: encoded(Image.new("P", (1, 1)), "GIF"),
    "thin.png": lambda: encoded(Image.new("L", (1, 4000)), "PNG"),
    "grüße 日本 🐼.jpg": lambda: JPEG,
    "new\nline.jpg": lambda: JPEG,
    "bitmap.bmp": lambda: encoded(RGB, "BMP"),
    "pixmap.ppm": lambda: encoded(RGB, "PPM"),
    "lossless.webp": lambda: encoded(RGB, "WEBP", lossless=True),
    "icon.ico": lambda: encoded(RGB.resize((32, 32)), "ICO"),
}

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"Dear Sir,\nno picture is attached.\n", "the file holds text"),
    "html.png": ("<html>nicht gefunden: größer</html>".encode(), "the file holds text"),
    "noise.jpg": (np.random.default_rng(0).bytes(2000), "not an image in a known format"),
    "zeros.png": (bytes(5000), "not an image in a known format"),
    "truncated.jpg": (PHOTO[: len(PHOTO) // 2], "cut off before its end"),
    "truncated.png": (PNG[: len(PNG) // 2], "cut off"),
    "truncated.gif": (encoded(RGB, "GIF")[:800], "cut off"),
    "truncated.webp": (encoded(RGB, "WEBP", lossless=True)[:100], "header is damaged"),
    "truncated.bmp": (encoded(RGB, "BMP")[:1000], "cut off"),
    "truncated.tiff": (encoded(RGB, "TIFF")[:1000], "cut off before its end"),
    "header only.png": (PNG[:33], "begins like an image, but its header"),
    "signature only.png": (PNG[:8], "begins like an image, but its header"),
    "signature only.jpg": (JPEG[:3], "begins like an image, but its header"),
    "corrupt.png": (PNG[:60] + b"\xff" * 40 + PNG[100:], "damaged"),
    "corrupt header.png": (PNG[:18] + b"\xff" + PNG[19:], "begins like an image, but its header"),
    "no pixels.png": (png(0, 10, 8, 2, b""), "begins like an image, but its header"),
    "bomb.png": (bomb(), "too large to decode safely: 900,000,000 pixels"),
}


@pytest.fixture
def changed_bundle(fake_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the fake bundle with other values in its manifest; its checksums fit."""

    def change(**values: object) -> Path:
        bundle = Bundle(fake_bundle)
        contents = BundleContents(
            manifest=msgspec.structs.replace(bundle.manifest, **values),
            graphs={
                graph.file: bundle.files.read(graph.file)
                for graph in bundle.manifest.graphs.values()
            },
            prompts=bundle.prompts(),
            bank=bundle.class_bank(),
            golden=bundle.golden(),
            vocabulary=bundle.vocabulary(),
        )
        target = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        write_bundle(contents, target, replace=False)
        return target

    return change
