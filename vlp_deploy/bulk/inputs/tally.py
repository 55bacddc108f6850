"""What was left out on the way, and which entries are."""

import os
from dataclasses import dataclass

from vlp_deploy.images.loading import IMAGE_SUFFIXES

SIGNATURE_BYTES = 16


@dataclass
class Tally:
    """Counts hidden entries and those that are no images."""

    left_out: int = 0


def is_hidden(name: str) -> bool:
    """Whether a path's last part begins with a dot."""
    return os.path.basename(name.rstrip("/")).startswith(".")


def is_named_like_image(name: str) -> bool:
    """Whether a name ends like an image's."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
