"""The images and logits that prove an export: eight pictures and the un-folded model's answers.

The text tower runs every token of all 77 positions through every layer, in float32 on the CPU.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlp_deploy.architecture import Preprocessing
from vlp_deploy.checkpoint import REFERENCE_IMAGES
from vlp_deploy.data import Sample
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
    """Eight images as the tower reads them, uint8 (8, 3, S, S).

    Where `prompted` selects classes, each is that of three candidates whose selection is clearest:
    where two classes tie for the last place, equally right exports may give different answers.
    """
    candidates = CANDIDATES if isinstance(prompted, ClassAwareClip) else 1
    count = candidates * REFERENCE_IMAGES
    (batch,) = ImageSet(spread_samples(samples, count), preprocessing).in_order(count)
    pixels: NDArray[np.uint8] = batch.pixels.numpy()
    if not isinstance(prompted, ClassAwareClip):
        return pixels
    gaps = prompted.selection_gaps(batch.pixels).cpu().numpy().reshape(-1, candidates)  # (8, 3)
    clearest: NDArray[np.uint8] = pixels[np.arange(0, count, candidates) + gaps.argmax(axis=1)]
    return clearest


@torch.no_grad()
def references(
    prompted: PromptedClip, prompts: Prompts, pixels: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """`reference.pixels` (8, 3, S, S), `reference.logits` (8, K), and more where it takes more."""
    answers = prompted.references(prompts, torch.from_numpy(pixels))
    arrays = {name: value.cpu().numpy().astype(np.float32) for name, value in answers.items()}
    return {"reference.pixels": pixels, **arrays}
