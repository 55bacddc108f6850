"""What is measured: anything that turns pixels into logits. B batch, K classes, S image size."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Progress = Callable[[str, int], None]  # what is being done, and how many steps of it just were


class Contender(Protocol):
    """The bundle's classifier, or what a user would run instead."""

    def logits(self, pixels: Pixels) -> Floats:
        """uint8 (B, 3, S, S) → (B, K)."""
