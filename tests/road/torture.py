"""A folder of good small pictures with every odd and every broken kind of file among them.

Odd files must be read; broken ones must each be refused, and nothing else may suffer.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((1, 1), (3, 200), (33, 17), (256, 255), (700, 500))
GOOD_KINDS = 50  # different pictures among the good ones


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def _alpha(image: Image.Image) -> Image.Image:
    return Image.merge("RGBA", (*image.split(), image.convert("L")))


def _rotated(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif)


def _animation(image: Image.Image, format: str) -> bytes:
    return encoded(image, format, save_all=True, append_images=[image.rotate(180)], duration=50)


ODD: dict[str, Callable[[Image.Image], bytes]] = {
    "16 bit.png": lambda image: encoded(_deep(image), "PNG"),
    "16 bit.tiff": lambda image: encoded(_deep(image), "TIFF"),
    "float.tiff": lambda image: encoded(image.convert("F"), "TIFF"),
    "32 bit.tiff": lambda image: encoded(image.convert("I"), "TIFF"),
    "lzw.tiff": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "cmyk.jpg": lambda image: encoded(image.convert("CMYK"), "JPEG"),
    "progressive.jpg": lambda image: encoded(image, "JPEG", progressive=True),
    "grey.jpg": lambda image: encoded(image.convert("L"), "JPEG"),
    "rotated.jpg": _rotated,
    "palette.png": lambda image: encoded(image.quantize(16), "PNG"),
    "palette alpha.png": lambda image: encoded(
        image.quantize(16), "PNG", transparency=bytes(range(0, 256, 16))
    ),
    "rgba.png": lambda image: encoded(_alpha(image), "PNG"),
    "grey alpha.png": lambda image: encoded(_alpha(image).convert("LA"), "PNG"),
    "colour key.png": lambda image: encoded(image, "PNG", transparency=(0, 0, 0)),
    "one bit.png": lambda image: encoded(image.convert("1"), "PNG"),
    "animated.gif": lambda image: _animation(image, "GIF"),
    "animated.webp": lambda image: _animation(image, "WEBP"),
    "animated.png": lambda image: _animation(image, "PNG"),
    "lossless.webp": lambda image: encoded(image, "WEBP", lossless=True),
    "bitmap.bmp": lambda image: encoded(image, "BMP"),
    "pixmap.ppm": lambda image: encoded(image, "PPM"),
    "png named.jpg": lambda image: encoded(image, "PNG"),
    "jpeg named.txt": lambda image: encoded(image, "JPEG"),
    "no ending": lambda image: encoded(image, "JPEG"),
    "new\nline\r.jpg": lambda image: encoded(image, "JPEG"),
    "grüße 日本 🐼.jpg": lambda image: encoded(image, "JPEG"),
    os.fsdecode(b"not utf-8 \xff\xfe.jpg"): lambda image: encoded(image, "JPEG"),
    "-dash, 'quotes\" & $(x).jpg": lambda image: encoded(image, "JPEG"),
}


def _cut(content: bytes) -> bytes:
    return content[: max(20, len(content) * 2 // 3)]


def _bomb(image: Image.Image) -> bytes:
    """A PNG that claims 30,000 pixels a side."""
    claimed = struct.pack(">IIBBBBB", 30_000, 30_000 + image.width, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", claimed), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _scrambled(image: Image.Image) -> bytes:
    """A PNG whose compressed pixels are noise."""
    content = encoded(image, "PNG")
    start = content.index(b"IDAT") + 4
    return content[:start] + b"\xff" * (len(content) - start - 12) + content[-12:]


BROKEN: dict[str, Callable[[Image.Image], bytes]] = {
    "empty.jpg": lambda image: b"",
    "text.jpg": lambda image: b"Dear Sir,\nno picture.\n" * image.width,
    "html.png": lambda image: "<html>größer</html>".encode() * image.height,
    "noise.jpg": lambda image: b"\0" + np.random.default_rng(0).bytes(99 * image.width),
    "zeros.png": lambda image: bytes(99 * image.height),
    "cut.jpg": lambda image: encoded(image, "JPEG")[: -(image.width + 30)],
    "cut.png": lambda image: _cut(encoded(image, "PNG")),
    "cut.gif": lambda image: encoded(image, "GIF")[:15],
    "cut.bmp": lambda image: _cut(encoded(image, "BMP")),
    "cut.tiff": lambda image: _cut(encoded(image, "TIFF")),
    "header only.png": lambda image: encoded(image, "PNG")[:33],
    "signature only.png": lambda image: encoded(image, "PNG")[:8],
    "signature only.jpg": lambda image: encoded(image, "JPEG")[:3],
    "scrambled.png": _scrambled,
    "bomb.png": _bomb,
}
SPECIAL = 4  # made by `_write_special`, in every folder of odd files


def write_torture(folder: Path, good: int) -> tuple[int, int]:
    """Write `good` good files and the bad ones among them; the numbers of odd and broken ones.

    Some are broken only for those who are not root: they may not be read.
    """
    contents = [encoded(photo(24 + kind, 40, kind), "JPEG") for kind in range(GOOD_KINDS)]
    for part in range(len(SIZES)):
        (folder / f"part {part}").mkdir(parents=True)
    for number in range(good):
        path = folder / f"part {number % len(SIZES)}" / f"{number:05} good.jpg"
        path.write_bytes(contents[number % GOOD_KINDS])
    for part, size in enumerate(SIZES):
        for number, (name, make) in enumerate((ODD | BROKEN).items()):
            path = folder / f"part {part}" / f"{number * 230:05} {name}"
            path.write_bytes(make(photo(*size, seed=part)))
        _write_special(folder / f"part {part}")
    return len(SIZES) * len(ODD), len(SIZES) * (len(BROKEN) + SPECIAL)


def _write_special(folder: Path) -> None:
    """A link to nothing, one to itself, a pipe and a file that may not be read."""
    (folder / "03000 dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "03000 itself.jpg").symlink_to("03000 itself.jpg")
    os.mkfifo(folder / "03000 pipe.jpg")
    (folder / "03000 loop").symlink_to(folder.parent)  # to a folder, so it is left out
    (folder / "03000 locked.jpg").write_bytes(encoded(photo(20, 20), "JPEG"))
    (folder / "03000 locked.jpg").chmod(0)
