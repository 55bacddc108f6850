"""Turn SVG drawings into packed uint8 arrays: RGBA, cropped to their content, 64 px.

Shape legend: N drawings, S = 64 pixels.
"""

import io
import os
from collections.abc import Iterable, Iterator
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image

SIZE = 64
MARGIN = 2
_RENDER_SIZE = 128
_MIN_INK = 0.01

Pixels = npt.NDArray[np.uint8]


def render(svg: str) -> Pixels | None:
    """Render one SVG to RGBA (64, 64, 4), its content centred with a margin of 2 pixels.

    Returns None for what cannot be parsed and for drawings with (almost) no ink.
    """
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=_RENDER_SIZE,
            height=_RENDER_SIZE,
            dpi=96.0,
            skip_system_fonts=True,
        )
    except (ValueError, RuntimeError):
        return None
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        return None
    content = image.crop(box)
    scale = (SIZE - 2 * MARGIN) / max(content.size)
    width, height = (max(1, round(side * scale)) for side in content.size)
    # RGBa has premultiplied colours: no dark fringes from transparent pixels.
    small = content.convert("RGBa").resize((width, height), Image.Resampling.BOX).convert("RGBA")
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(small, ((SIZE - width) // 2, (SIZE - height) // 2))
    pixels = np.asarray(canvas)  # (S, S, 4)
    return pixels if pixels[..., 3].mean() > 255 * _MIN_INK else None


def render_all(svgs: Iterable[str], *, processes: int | None = None) -> Iterator[Pixels | None]:
    """Render SVGs in worker processes, in order; None where `render` gives None."""
    with get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        yield from pool.imap(render, svgs, chunksize=64)
