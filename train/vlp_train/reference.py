"""The images and logits that prove an export: eight pictures and the un-folded model's answers.

The text tower runs every token of all 77 positions through every layer, in float32 on the CPU.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlp_deploy.data.dataset import Sample
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.formats.checkpoint import REFERENCE_IMAGES
from vlp_train.class_aware import ClassAwareClip
from vlp_train.images import ImageSet
from vlp_train.prompted import PromptedClip, Prompts

CANDIDATES = 3  # for each reference image


def spread_samples(samples: Sequence[Sample], count: int = REFERENCE_IMAGES) -> list[Sample]:
    """`count` samples, their classes spread over the list; repeated if there are fewer."""
    by_class = sorted(samples, key=lambda sample: sample.label)  # stable: first of a class first
    return [by_class[index * len(by_class) // count] for index in range(count)]


def reference_pixels(
    samples: Sequence[Sample], preprocessing: Preprocessing, prompted: PromptedClip | None = None
) -> NDArray[np.uint8]:
    """Eight images as the tower reads them, uint8 (8, 3, S, S), the clearest for `prompted`."""
    count = candidates(prompted)
    (batch,) = ImageSet(spread_samples(samples, count), preprocessing).in_order(count)
    return clearest(batch.pixels.numpy(), prompted)


def candidates(prompted: PromptedClip | None) -> int:
    """How many images to choose the eight from."""
    return REFERENCE_IMAGES * (CANDIDATES if isinstance(prompted, ClassAwareClip) else 1)


@torch.no_grad()
def clearest(pixels: NDArray[np.uint8], prompted: PromptedClip | None) -> NDArray[np.uint8]:
    """Eight of the candidates' pixels.

    Where `prompted` selects classes, each is that of three candidates whose selection is clearest:
    where two classes tie for the last place, equally right exports may give different answers.
    """
    if not isinstance(prompted, ClassAwareClip):
        return pixels
    gaps = prompted.selection_gaps(torch.from_numpy(pixels)).cpu().numpy()
    best = gaps.reshape(-1, CANDIDATES).argmax(axis=1)  # (8,)
    chosen: NDArray[np.uint8] = pixels[np.arange(0, len(pixels), CANDIDATES) + best]
    return chosen


@torch.no_grad()
def references(
    prompted: PromptedClip, prompts: Prompts, pixels: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """`reference.pixels` (8, 3, S, S), `reference.logits` (8, K), and more where it takes more."""
    answers = prompted.references(prompts, torch.from_numpy(pixels))
    arrays = {name: value.cpu().numpy().astype(np.float32) for name, value in answers.items()}
    return {"reference.pixels": pixels, **arrays}
