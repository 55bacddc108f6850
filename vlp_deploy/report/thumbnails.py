"""From image files to small pictures that a page carries in itself."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from vlp_deploy.errors import ImageError
from vlp_deploy.images.loading import load_image

SIDE = 112  # pixels of the longer side
QUALITY = 80


def thumbnails(paths: Iterable[str]) -> dict[str, str]:
    """Path → `data:` address of a JPEG. What cannot be read any more is left out."""
    found = {}
    for path in paths:
        try:
            found[path] = _thumbnail(Path(path))
        except ImageError:
            continue
    return found


def _thumbnail(path: Path) -> str:
    picture = load_image(path, draft_size=SIDE)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
