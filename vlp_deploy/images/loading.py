"""From anything that holds a picture to an upright 8-bit RGB image, or an error that says why not.

Rules for odd kinds: 16-bit values are scaled to 8 bits (never clipped); floating-point and 32-bit
values in 0…1 or 0…255 keep that range, others are stretched from their smallest to their largest;
a palette is looked up; transparency is laid on `background`; of an animation the first frame
counts; CMYK is converted as Pillow does; ICC profiles are ignored, as in training; the EXIF
orientation is applied. The content decides about the format, never the name. Damage that leaves no
trace for the decoder (libjpeg conceals it) passes.
"""

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from vlp_deploy.errors import ImageError
from vlp_deploy.images.limits import DEFAULT_LIMITS, ByteBudget, Deadline, Limits

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

# Bytes a pixel that decoding takes at its peak: growth of the process's VmHWM, 6000 x 6000 pixels,
# Pillow 12. Progressive JPEG keeps the coefficients of the whole image beside, scaled or not.
DEEP_BYTES, SIXTEEN_BIT_BYTES, TRANSPARENT_BYTES, PLAIN_BYTES = 25, 12, 16, 8
COEFFICIENT_BYTES = 6
_DECODING = ByteBudget()
WHITE = (255, 255, 255)

# Formats that carry a signature and need no program beside Pillow (EPS would start Ghostscript).
# The first group is what Pillow imports anyway; DIB is BMP without its file header.
USUAL_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM")
OTHER_FORMATS = ("WEBP", "TIFF", "AVIF", "HEIF", "JPEG2000", "ICO", "QOI", "DIB")
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".webp", ".tif", ".tiff", ".avif", ".avifs"),
        *(".heic", ".heif", ".jp2", ".j2k", ".jpx", ".ico", ".qoi"),
    }
)

SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|BM.{4}\x00\x00\x00\x00|RIFF.{4}WEBP|II[*+]\x00|MM\x00[*+]"
    rb"|.{4}ftyp(avi[fs]|hei[cxms]|hevc|m[is]f1)|\x00\x00\x00\x0cjP|\x00\x00\x01\x00|qoif"
    rb"|P[1-6]\s\d",
    re.DOTALL,
)

# brand of an ISO media file -> Pillow's name of its format; what reads it where Pillow does not
ISO_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIF"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
ISO_NEEDS = {
    "HEIF": "HEIC, which needs pillow-heif (pip install 'vlp-deploy[heic]')",
    "AVIF": "AVIF, which needs Pillow 11.3 or later",
}

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    source: ImageSource,
    *,
    limits: Limits = DEFAULT_LIMITS,
    background: tuple[int, int, int] = WHITE,
    exif_transpose: bool = True,
    draft_size: int | None = None,
    deadline: Deadline | None = None,
) -> Image.Image:
    """An upright RGB image from a path, encoded bytes, a Pillow image or a uint8 array.

    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). `limits` are checked before anything is
    decoded; the time is that of `deadline`, looked at between two reads. `draft_size` lets JPEG
    decode at a fraction of its size, both sides at least `draft_size` (faster, not pixel-exact),
    but never a Pillow image, which stays the caller's. Raises ImageError, whose message does not
    name the path. May be called from many threads: they share the bytes that decoding may take.
    """
    deadline = deadline or Deadline(None)
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        with _QUIET_PILLOW:
            _check_size(source, limits)
            with _memory_for(source, limits, deadline):
                return _decode(source, background, exif_transpose)
    with _open(source) as file, _QUIET_PILLOW, _identify(_Timed(file, deadline)) as image:
        _check_size(image, limits)
        coefficients = COEFFICIENT_BYTES * image.width * image.height
        if draft_size is not None:
            image.draft(None, (draft_size, draft_size))
        progressive = coefficients if image.info.get("progressive") else 0
        with _memory_for(image, limits, deadline, more=progressive):
            return _decode(image, background, exif_transpose)


def check_header(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise the ImageError that `load_image` would, as far as the header tells."""
    with _open(path) as file, _QUIET_PILLOW, _identify(file) as image:
        _check_size(image, limits)


class _QuietPillow:
    """While any thread is inside, Pillow's warnings about odd files are not shown.

    Filters are global to the process: the first thread in sets them, the last one out resets.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._filters is not None:
                self._filters.__exit__(None, None, None)


_QUIET_PILLOW = _QuietPillow()


def _open(source: str | os.PathLike[str] | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        if not source:
            raise ImageError("there are no bytes")
        return io.BytesIO(source)
    path = Path(source)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("this is a folder, not an image")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ImageError("this is a pipe, a socket or a device, not a file")
        if status.st_size == 0:
            raise ImageError("the file is empty")
        return open(path, "rb")
    except FileNotFoundError:
        if path.is_symlink():
            raise ImageError("this is a link to a file that does not exist") from None
        raise ImageError("there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"the file cannot be opened: {reason}") from error


class _Timed:
    """A file that refuses to be read on after the deadline."""

    def __init__(self, file: BinaryIO, deadline: Deadline) -> None:
        self._file, self._deadline = file, deadline
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self._deadline.check()
        return self._file.read(size)


def _identify(file: BinaryIO | _Timed) -> Image.Image:
    """The image behind a file, its header read but nothing decoded."""
    try:
        try:
            return Image.open(cast(BinaryIO, file), formats=USUAL_FORMATS)
        except UnidentifiedImageError:
            _load_plugins()
            known = tuple(name for name in OTHER_FORMATS if name in Image.OPEN)
            return Image.open(cast(BinaryIO, file), formats=known)
    except ImageError:  # too late
        raise
    except UnidentifiedImageError:
        file.seek(0)
        raise ImageError(_why_unknown(file.read(512))) from None
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(_pixels_found(error))) from error
    except Exception as error:  # Pillow's parsers raise whatever the damaged bytes led them to
        raise ImageError(f"the image's header is damaged ({_plain(error)})") from error


@cache
def _load_plugins() -> None:
    """Let Pillow know all its formats, and HEIC where the package for it is installed."""
    Image.init()
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(
            _too_large(f"{width} × {height} pixels; the limit is {limits.max_pixels:,}")
        )
    if width == 0 or height == 0:
        raise ImageError(f"the image has no pixels ({width} × {height})")


@contextmanager
def _memory_for(
    image: Image.Image, limits: Limits, deadline: Deadline, *, more: int = 0
) -> Iterator[None]:
    """Holds the bytes that decoding takes; waiting for them does not count as the file's time."""
    need = image.width * image.height * _bytes_a_pixel(image) + more
    if need > limits.max_bytes:
        raise ImageError(
            _too_large(
                f"it would take {need / 1e6:,.0f} MB; the limit is {limits.max_bytes / 1e6:,.0f}"
            )
        )
    with ExitStack() as held:
        with deadline.paused():
            held.enter_context(_DECODING.reserve(need, limit=limits.max_bytes))
        yield


def _bytes_a_pixel(image: Image.Image) -> int:
    if image.mode.startswith("I;16"):
        return SIXTEEN_BIT_BYTES
    if image.mode in ("I", "F"):
        return DEEP_BYTES
    return TRANSPARENT_BYTES if image.has_transparency_data else PLAIN_BYTES


def _decode(
    image: Image.Image, background: tuple[int, int, int], exif_transpose: bool
) -> Image.Image:
    try:
        image.load()
        rgb = _to_rgb(image, background)
        return _upright(rgb, _orientation(image) if exif_transpose else 1)
    except ImageError:  # too late
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(_pixels_found(error))) from error
    except Exception as error:  # Pillow's decoders raise whatever the damaged bytes led them to
        if "truncated" in str(error).lower():
            raise ImageError(f"the image is cut off before its end ({_plain(error)})") from error
        raise ImageError(f"the image is damaged ({_plain(error)})") from error


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """A new RGB image without metadata; `image` is not changed."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb = _from_deep_grey(image, background)
    elif image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        canvas.alpha_composite(_with_alpha(image))
        rgb = canvas.convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info = {}  # its EXIF would rotate the image again
    return rgb


def _with_alpha(image: Image.Image) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # 16-bit PNG: the transparent colour has 16 bits, of the pixels Pillow keeps the high bytes.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image.convert("RGBA")


def _from_deep_grey(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """8-bit RGB from one channel of 16 or 32 bits, or of floating point."""
    values = np.asarray(image)
    sixteen_bit = image.mode.startswith("I;16") or (image.format == "PNG" and image.mode == "I")
    if sixteen_bit:
        grey = ((values.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)  # rounded
    else:
        grey = _in_byte_range(values.astype(np.float64))
    rgb = np.repeat(grey[:, :, None], 3, axis=2)  # (H, W, 3)
    key = image.info.get("transparency")
    if sixteen_bit and isinstance(key, int):
        rgb[values == key] = background
    return Image.fromarray(rgb)


def _in_byte_range(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low == high:
        return np.zeros(values.shape, np.uint8)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)


def _from_array(array: NDArray[Any]) -> Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not shape_fits or array.size == 0:
        raise ImageError(
            f"the array is {array.dtype} {array.shape}; expected uint8 of shape (height, width, 3)"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata is no reason to lose a picture that decoded
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def has_image_signature(start: bytes) -> bool:
    """Whether a file's first 16 bytes are those of a format that `load_image` reads."""
    return SIGNATURE.match(start) is not None


def _why_unknown(start: bytes) -> str:
    kind = ISO_BRANDS.get(start[8:12]) if start[4:8] == b"ftyp" else None
    if kind and kind not in Image.OPEN:
        return f"this is {ISO_NEEDS[kind]}; convert it to JPEG"
    if has_image_signature(start):
        return "the file begins like an image, but its header is damaged or cut off"
    if _looks_like_text(start):
        return "this is not an image: the file holds text"
    return "this is not an image in a known format, or its first bytes are damaged"


def _looks_like_text(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if not 0 < len(start) - 3 <= error.start:  # not just a last character cut in two
            return False
    return not any(byte < 32 and byte not in b"\t\n\r\f" for byte in start)


def _too_large(found: str) -> str:
    return f"the image is too large to decode safely: {found}"


def _pixels_found(error: Image.DecompressionBombError) -> str:
    """Pillow's message, without its guess at the sender's intentions."""
    numbers = re.findall(r"\d+", str(error))
    if len(numbers) != 2:
        return str(error)
    return f"{int(numbers[0]):,} pixels; the limit is {int(numbers[1]):,}"


def _plain(error: Exception) -> str:
    return str(error) or type(error).__name__
